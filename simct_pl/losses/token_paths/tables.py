"""All that was answered about a pair's positions, as arrays: what the path builder gathers from, and the disk keeps.

In: rows, as Answers and Halves write them. Out: Tables.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from simct_pl.losses.token_paths.categories import Step
from simct_pl.losses.token_paths.lists import Growing, ListStore
from simct_pl.losses.token_paths.shift import ShiftStore

# Columns of Tables.questions …
BASE, OWN, NUM_OWN, KINDS, LIST_ALONG, LIST_BEFORE, IS_BACK = range(7)
FIRST_STEP, NUM_STEPS, FIRST_MERGED, NUM_MERGED, SHIFT = range(7, 12)
# … of Tables.halves, which begins and ends alike …
LIST, REACHING, MOVED, CONTRADICTING = LIST_ALONG, LIST_BEFORE, IS_BACK, SHIFT
# … and of Tables.steps.
STEP_BASE, STEP_KINDS, STEP_LIST, STEP_SHIFT = range(4)

_GROWING = ("questions", "question_keys", "halves", "half_keys", "steps", "merged")
_LISTS = ("lists", "parts")


class Tables:
    """questions, halves: int64 [.., 12], a row each; question_keys, half_keys: uint64, the hash of each. steps: int64
    [.., 4], the teacher's rows of each of them. merged: int64 [.., 2], (from, to).

    lists: what paths point at. parts: what is known of halves besides (Crossings). shifts: see ShiftStore.
    """

    def __init__(self) -> None:
        self.questions, self.halves, self.steps, self.merged = Growing(12), Growing(12), Growing(4), Growing(2)
        self.question_keys, self.half_keys = Growing(None, np.uint64), Growing(None, np.uint64)
        self.lists, self.parts, self.shifts = ListStore(), ListStore(), ShiftStore()

    @property
    def num_entries(self) -> int:
        """Of all lists."""
        return self.lists.num_entries + self.parts.num_entries

    def add_steps(self, steps_S4: np.ndarray) -> tuple[int, int]:
        """Where some steps begin, and how many they are."""
        self.steps.extend(steps_S4)
        return self.steps.size - len(steps_S4), len(steps_S4)

    def add_merged(self, merged_J2: np.ndarray) -> tuple[int, int]:
        """The same of labels that are one."""
        self.merged.extend(merged_J2)
        return self.merged.size - len(merged_J2), len(merged_J2)

    def step_rows(self, steps: Sequence[Step]) -> np.ndarray:
        """Rows of `steps`, int64 [S, 4]."""
        return np.array(
            [(step.base, step.kinds, self.lists.add(step.listed), self.shifts.number(step.shift)) for step in steps]
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it; see `of`."""
        arrays = {name: getattr(self, name).rows for name in _GROWING}
        for name in _LISTS:
            arrays |= {name: getattr(self, name).rows, f"{name}_offsets": getattr(self, name).offsets}
        return arrays | self.shifts.arrays()

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray]) -> Tables:
        """What `arrays` was told.

        Raises:
            ValueError: if it is something else.
        """
        found, counts = cls(), {name: len(arrays[name]) for name in _GROWING}
        if counts["questions"] != counts["question_keys"] or counts["halves"] != counts["half_keys"]:
            raise ValueError(f"these are not the tables of one pair: {counts}.")
        for name in _GROWING:
            getattr(found, name).extend(arrays[name])
        for name in _LISTS:
            setattr(found, name, ListStore.of(arrays[name], arrays[f"{name}_offsets"]))
        found.shifts = ShiftStore.of(arrays)
        return found
