"""The thinking in front of an answer, as reasoning models write it: `<think> … </think>`.

In: a response as text or as sampled ids. Out: where the answer begins. A response has thinking if it begins with the
opening mark, or its prompt ends with it (some templates write it); until the closing mark, all of it is thinking. The
white space behind the closing mark belongs to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from simct_pl.tokenization.bytes import TokenBytes

OPEN, CLOSE = b"<think>", b"</think>"
WHITE = b" \t\r\n"
_TAIL = 16  # tokens of a prompt that its last words are looked for in

# supervised: part of the response like the rest. skipped: in both models' context, in no loss. left_out: the teacher
# reads the answer alone; the student goes on reading what it has thought.
Thinking = Literal["supervised", "skipped", "left_out"]
CHOICES: tuple[Thinking, ...] = ("supervised", "skipped", "left_out")


def answer_start(response: bytes, is_open: bool = False) -> int:
    """Byte at which the answer begins: 0 without thinking, the length if it never ends.

    is_open: the prompt has opened it.
    """
    if not is_open and not response.lstrip(WHITE).startswith(OPEN):
        return 0
    _, close, answer = response.partition(CLOSE)
    if not close:
        return len(response)
    return len(response) - len(answer.lstrip(WHITE))


def opens_thinking(table: TokenBytes, prompt_ids: Sequence[int]) -> bool:
    """Whether a prompt ends with the opening mark."""
    tail_P = np.asarray(prompt_ids[-_TAIL:], np.int64)
    return table.join(tail_P[table.known(tail_P)]).rstrip(WHITE).endswith(OPEN)


def num_thinking_tokens(table: TokenBytes, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> int:
    """Response tokens before the answer's first; a token that begins in the thinking counts as thinking.

    response_ids: without the stop. All of them, if the thinking never ends.
    """
    ids_N = np.asarray(response_ids, np.int64)
    known_K = np.flatnonzero(table.known(ids_N))  # ids of a padded embedding spell nothing
    data, ends_K = table.gather(ids_N[known_K])
    start = answer_start(data, opens_thinking(table, prompt_ids))
    if start == 0:
        return 0
    if start == len(data):
        return len(ids_N)
    return int(known_K[np.searchsorted(ends_K, start, "left")]) + 1
