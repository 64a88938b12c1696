"""Where a host may wait for its device in a training step, and why.

In: what a rehearsal has counted. Out: the waits that nothing here allows. A wait keeps a GPU without work: whatever is
in the loop over chunks must have none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from simct_pl.rehearsal.ledger import Ledger, Place
from simct_pl.rehearsal.values import UnknownValue

Per = Literal["step", "forward", "run"]


@dataclass(frozen=True)
class Allowed:
    """kind: of a Wait. most: how many of them in each step or forward (of either model), or in a run, where None is as
    many as there are. answer: what a read gets of a value that nobody knows.
    """

    kind: str
    most: int | None
    per: Per
    reason: str
    answer: Any = None


LOSSES, MODELS, TRAINING = "simct_pl/losses/", "simct_pl/models/", "simct_pl/training/"
# Function → what it may wait for.
ALLOWED: dict[str, tuple[Allowed, ...]] = {
    f"{MODELS}lm_head.py:response_states": (
        Allowed("upload", 2, "forward", "ids and rows, before there is anything to compute"),
        Allowed("item", 2, "forward", "Phi-3's rotary embeddings ask for the longest position, once in each forward"),
    ),
    f"{LOSSES}token_paths/masses.py:SideLabels.to": (Allowed("upload", 4, "run", "classes of the pair, kept there"),),
    f"{LOSSES}token_paths/shift.py:ShiftStore.labels": (
        Allowed("upload", None, "run", "labels behind some bytes, kept there"),
    ),
    f"{LOSSES}columns/column_logprobs.py:column_logprobs": (
        Allowed("item", 0, "step", "whether a bucket underflows, on CPUs alone; there it does not", answer=False),
    ),
    f"{TRAINING}optim.py:GuardedStep.__call__": (
        Allowed("item", 1, "step", "no step on gradients that are not finite", answer=True),
    ),
    f"{TRAINING}teacher.py:ShardedTeacher._pack": (
        Allowed("item", 1, "forward", "ranks that share a teacher run it as often as each other", answer=1),
        Allowed("upload", 1, "forward", "the same"),
    ),
}


def answer_of(place: Place) -> Any:
    """What the host reads where nobody knows the value.

    Raises:
        UnknownValue: if nothing says what it shall be.
    """
    for one in ALLOWED.get(place.function, ()):
        if one.answer is not None:
            return one.answer
    raise UnknownValue(f"{place.line} reads a number that only the device knows")


def forbidden(ledger: Ledger, num_forwards: int) -> list[str]:
    """Waits of one step that are not in the table, or more than it allows.

    num_forwards: of both models, in this step.
    """
    found = []
    for wait, count in ledger.waits.items():
        most = {one.kind: one for one in ALLOWED.get(wait.place.function, ())}.get(wait.kind)
        if most is None:
            found.append(f"{wait.place.line}: {wait.kind}, {count} times")
        elif most.most is not None and count > most.most * (num_forwards if most.per == "forward" else 1):
            found.append(f"{wait.place.line}: {wait.kind}, {count} times, {most.most} a {most.per} at most")
    return found


def products(ledger: Ledger, phase: str) -> set[torch.dtype]:
    """Dtypes in which matrices were multiplied in a phase, but for what is less than a hundredth of it, as rotary
    embeddings are.
    """
    of_phase = {dtype: amount for (of, dtype), amount in ledger.products.items() if of == phase}
    return {dtype for dtype, amount in of_phase.items() if 100 * amount >= sum(of_phase.values())}
