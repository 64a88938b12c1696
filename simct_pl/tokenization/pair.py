"""One response in the tokens of both models.

In: the student's SAMPLED ids. Out: TokenizedPair. The student's ids stay as they are; their bytes are the text; the
teacher tokenises that text alone, with nothing in it read as a control token, and stop is paired with stop.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from simct_pl.errors import AlignmentError
from simct_pl.tokenization.bytes import TokenBytes, as_bytes
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.tokenization.shared_vocab import SharedVocab
from simct_pl.types import LostReason

# Codes of SideTokens.faults_N: 0, or 1 + the place of the reason here.
FAULT_REASONS = (
    LostReason.UNMAPPED_TOKEN,
    LostReason.ADDED_TOKEN,
    LostReason.TRUNCATED_UTF8,
    LostReason.BYTE_MISMATCH,
    LostReason.NORMALIZER,
)
UNMAPPED, ADDED, TRUNCATED, MISMATCH, NORMALIZED = range(1, 6)

_WINDOW = 1024  # bytes that a broken character makes readable_text look at again, so that its time is linear


@dataclass(frozen=True, eq=False)
class SideTokens:
    """One model's tokens of a response (N = tokens without the stop).

    ids: int64, the stop included. data: the bytes of the N tokens without a dummy prefix. ends_N: int64, where in
    data each token ends. faults_N: int8, 0 or a code of FAULT_REASONS: no unit may hold this token. stripped: a
    dummy prefix was taken off the first token, whose shared columns therefore mean other bytes than those of a side
    without one.
    """

    ids: np.ndarray
    data: bytes
    ends_N: np.ndarray
    faults_N: np.ndarray
    stripped: bool

    @property
    def num_content(self) -> int:
        return len(self.ends_N)


@dataclass(frozen=True, eq=False)
class TokenizedPair:
    """What an aligner needs: the text, both sides' tokens, and whether both end with a stop."""

    text: bytes
    student: SideTokens
    teacher: SideTokens
    has_stop: bool


class TokenizerPair:
    """The tokenizers of a student and a teacher.

    Args:
        student, teacher: what reads and renders for each model.
    """

    def __init__(self, student: ModelTokenizer, teacher: ModelTokenizer) -> None:
        self.student = student
        self.teacher = teacher

    @classmethod
    def from_pretrained(
        cls,
        student: str,
        teacher: str,
        student_template: Mapping[str, Any] | None = None,
        teacher_template: Mapping[str, Any] | None = None,
    ) -> TokenizerPair:
        """Load both from model folders, tokenizer.json paths or hub names.

        student_template, teacher_template: arguments of each one's chat template.

        Raises:
            MissingFileError, ModelFolderError, TokenizerError: naming the path and the fix.
        """
        return cls(
            ModelTokenizer.from_pretrained(student, student_template),
            ModelTokenizer.from_pretrained(teacher, teacher_template),
        )

    @cached_property
    def same_tokenizer(self) -> bool:
        """Whether both models read and stop alike; the shared vocabulary is then every id (vanilla distillation)."""
        same_stops = set(self.student.found_stop_ids) == set(self.teacher.found_stop_ids)
        return same_stops and self.student.table.fingerprint == self.teacher.table.fingerprint

    @cached_property
    def shared_vocab(self) -> SharedVocab:
        """Shared columns of the two vocabularies; without a stop column if one of the two has no stop."""
        return SharedVocab.build(
            self.student.table, self.teacher.table, self.student.found_stop_ids, self.teacher.found_stop_ids
        )

    def tokenize(self, student_response_ids: Sequence[int], stopped: bool) -> TokenizedPair:
        """Both sides' tokens of one sampled response.

        student_response_ids: the sampled ids, the stop included when stopped.

        Raises:
            AlignmentError: if stopped and the last id is not a stop of the student.
            MissingStopTokenError: if stopped and a model has no stop.
        """
        return self.tokenize_batch([(student_response_ids, stopped)])[0]

    def tokenize_batch(self, responses: Sequence[tuple[Sequence[int], bool]]) -> list[TokenizedPair]:
        """The same for several (ids, stopped), with one batched call of the teacher's tokenizer."""
        students = [self._student_side(ids, stopped) for ids, stopped in responses]
        # Nothing is tokenised again: the text might come back in other ids than those that were sampled.
        if self.same_tokenizer:
            return [_read_by_both(side, stopped) for (side, _), (_, stopped) in zip(students, responses, strict=True)]
        teacher_ids = self.teacher.encode_batch([read for _, read in students])
        return [
            TokenizedPair(
                side.data,
                side,
                read_side(self.teacher.table, ids, side.data, self.teacher.stop_ids[0] if stopped else None),
                stopped,
            )
            for (side, _), ids, (_, stopped) in zip(students, teacher_ids, responses, strict=True)
        ]

    def tokenize_text(self, text: str) -> TokenizedPair:
        """Both sides read a given text; no stop.

        Raises:
            TokenizerError: for a text that UTF-8 cannot write.
        """
        data = as_bytes(text)
        student, teacher = (read_side(side.table, side.encode(text), data) for side in (self.student, self.teacher))
        return TokenizedPair(data, student, teacher, has_stop=False)

    def _student_side(self, ids: Sequence[int], stopped: bool) -> tuple[SideTokens, str]:
        """The student's tokens, and what the teacher is to read."""
        if stopped and (not len(ids) or ids[-1] not in self.student.stop_ids):
            raise AlignmentError(
                f"a response that stopped ends with {ids[-1] if len(ids) else 'nothing'}; expected one of the "
                f"student's stop ids {self.student.stop_ids}. Pass stopped=False for a response that was cut."
            )
        return sampled_side(self.student.table, ids, stopped)


def _read_by_both(side: SideTokens, stopped: bool) -> TokenizedPair:
    """Two models with one tokenizer: the teacher reads the sampled ids themselves, however unusual their spelling.

    Every id that has bytes is then a unit, control tokens and broken characters included.
    """
    faults_N = np.where(side.faults_N == UNMAPPED, side.faults_N, 0).astype(np.int8)
    shared = replace(side, faults_N=faults_N)
    return TokenizedPair(side.data, shared, shared, stopped)


def sampled_side(table: TokenBytes, ids: Sequence[int], stopped: bool) -> tuple[SideTokens, str]:
    """The side whose bytes are the text, and what the other side is to read.

    ids: as they were sampled, the stop included when stopped.
    """
    ids_N = np.asarray(ids, np.int64)
    data, ends_N, faults_N = _gather(table, ids_N[: len(ids_N) - stopped], special_fault=ADDED)
    stripped = table.dummy_prefix and data.startswith(b" ")
    if stripped:
        # The dummy space is the first byte: all ends move by one, and a token that was nothing else ends at 0.
        data, ends_N = data[1:], np.maximum(ends_N - 1, 0)
    text, damages = readable_text(data)
    for start, end, fault in damages:
        # From the first token that ends behind the damage's start, to the first one that ends at its end or behind it.
        # A fault that a token has already stays.
        touched = slice(np.searchsorted(ends_N, start, "right"), np.searchsorted(ends_N, end, "left") + 1)
        faults_N[touched] = np.where(faults_N[touched] == 0, fault, faults_N[touched])
    return SideTokens(ids_N, data, ends_N, faults_N, stripped), text


def read_side(table: TokenBytes, ids: Sequence[int], text: bytes, stop_id: int | None = None) -> SideTokens:
    """A side that tokenised the text itself.

    The unknown token marks text that its vocabulary cannot spell. A leading space is a dummy prefix only if the text
    does not begin with it.
    """
    ids_N = np.asarray(ids, np.int64)
    data, ends_N, faults_N = _gather(table, ids_N, special_fault=NORMALIZED)
    stripped = table.dummy_prefix and data.startswith(b" ") and data != text
    stripped = stripped and (not text.startswith(b" ") or data.startswith(b"  "))
    if stripped:
        data, ends_N = data[1:], np.maximum(ends_N - 1, 0)
    if stop_id is not None:
        ids_N = np.append(ids_N, stop_id)
    return SideTokens(ids_N, data, ends_N, faults_N, stripped)


def _gather(table: TokenBytes, ids_N: np.ndarray, special_fault: int) -> tuple[bytes, np.ndarray, np.ndarray]:
    """(bytes, ends, faults) of some ids; an id without bytes is a fault of no length."""
    known_N = table.known(ids_N)
    if known_N.all():
        return *table.gather(ids_N), table.is_special_V.take(ids_N) * np.int8(special_fault)
    # Ids without bytes have length 0 in their places, so that the ends still count every token.
    data, known_ends = table.gather(ids_N[known_N])
    lengths_N = np.zeros(len(ids_N), np.int64)
    lengths_N[known_N] = np.diff(known_ends, prepend=0)
    faults_N = np.full(len(ids_N), UNMAPPED, np.int8)
    faults_N[known_N] = np.where(table.is_special_V[ids_N[known_N]], special_fault, 0)
    return data, np.cumsum(lengths_N), faults_N


def readable_text(data: bytes) -> tuple[str, list[tuple[int, int, int]]]:
    """What a tokenizer can read of some bytes, and (start, end, fault) of what it cannot.

    An incomplete character at the very end is left out; any other invalid byte is read as U+FFFD.
    """
    try:
        return data.decode(), []
    except UnicodeDecodeError:
        pass
    pieces, damages, done = [], [], 0
    while done < len(data):
        window = data[done : done + _WINDOW]
        try:
            # Only the last window is final: a character that an earlier one cuts in two is read with the next window.
            piece, num_read = codecs.utf_8_decode(window, "strict", done + len(window) == len(data))
            pieces.append(piece)
            done += num_read
        except UnicodeDecodeError as error:
            start, end = done + error.start, done + error.end
            # A whole beginning of a character at the very end: the response was cut there, and nothing is wrong with
            # it. All else is an invalid byte.
            cut = error.reason == "unexpected end of data"
            pieces.append(window[: error.start].decode() + ("" if cut else "\ufffd"))
            damages.append((start, end, TRUNCATED if cut else MISMATCH))
            done = end
    return "".join(pieces), damages
