"""What was answered about positions: asked once, kept as rows of numbers, looked up by a hash from then on.

In: what an Asker says. Out: Answers, which fills the Tables that the path builder gathers from. The two halves of a
question (`halves`) have lists of their own, which many questions point at, unless the halves speak of the same ids.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from simct_pl.losses.token_paths.asking import Asker
from simct_pl.losses.token_paths.categories import DROPPED, Categories
from simct_pl.losses.token_paths.halves import Along, Before, Half, Halves, crossed, shortened
from simct_pl.losses.token_paths.lists import EMPTY
from simct_pl.losses.token_paths.neighbours import Front, Ids
from simct_pl.losses.token_paths.tables import Tables

MOST_ENTRIES = 50_000_000  # of lists, and
MOST_QUESTIONS = 1_000_000  # that are kept; beyond, everything is asked anew


@dataclass(frozen=True)
class Inside:
    """A question inside a teacher token; see Asker.inside and Places."""

    written: Ids
    outside: int
    covering: int
    inner: Ids
    own: int
    earlier: tuple[Front, ...]
    previous: int | None
    ends_early: bool


class Answers:
    """Of one pair. tables: as it was kept, if it was."""

    def __init__(self, asker: Asker, tables: Tables | None = None) -> None:
        self.asker, self.links = asker, asker.links
        self.use(Tables() if tables is None else tables)

    def use(self, tables: Tables) -> None:
        """Know what is in some tables, and nothing else; paths that were made before keep their lists."""
        self.tables, self.halves = tables, Halves(self.asker, tables)
        self._number = {key: number for number, key in enumerate(tables.question_keys.rows.tolist())}

    def make_room(self) -> None:
        """Forget everything if there is much."""
        if self.tables.num_entries > MOST_ENTRIES or self.tables.questions.size > MOST_QUESTIONS:
            self.use(Tables())

    def numbers(self, keys: list[int]) -> list[int]:
        """Rows of some questions; -1 for those that were not asked yet."""
        found = self._number.get
        return [found(key, -1) for key in keys]

    def ask(self, key: int, question: tuple[Along, Before | None] | Inside) -> None:
        """A question that was not asked yet."""
        if isinstance(question, Inside):
            found = self.asker.inside(*(getattr(question, name) for name in _INSIDE))
            found = self._written(found, question.written[-1])
            self._add_whole(key, shortened(found, question.ends_early), is_back=False)
            return
        along, before = question
        half = self.halves.of(along)
        if before is None:
            self._add_halves(key, half, None)
            return
        other, written = self.halves.of(before), None
        if half.lists_steps and (half.labels >= self.links.num_labels).any():
            written = self._written(half.categories, before.written[-1])
        differs = written is not None and written is not half.categories
        if differs or _meet(half.ids, other.ids) or _meet(half.ids, other.others):
            whole = half.categories if written is None else written
            found = crossed(whole, other.crossings, along.own, self.links.student_label_K)
            self._add_whole(key, found, other.is_back)
            return
        self._add_halves(key, half, other)

    def _written(self, found: Categories, before: int) -> Categories:
        """Without the teacher tokens along the path that mean student tokens which would have merged with `before`."""
        ids, labels = found.moved_arrays
        own = labels >= self.links.num_labels
        if not own.any() or not any(step.listed for step in found.steps):
            return found
        unwritten = {*labels[own].tolist()} - {*labels[own & ~self.asker.joining(before, ids)].tolist(), found.own}
        if not unwritten:
            return found
        steps = [
            replace(step, listed={k: DROPPED if label in unwritten else label for k, label in step.listed.items()})
            for step in found.steps
        ]
        return replace(found, steps=steps)

    def _add_halves(self, key: int, along: Half, before: Half | None) -> None:
        """A question whose halves have nothing to do with one another."""
        of_token = along.base, along.own, along.num_own, along.kinds if before is None else before.kinds
        lists = along.list_number, EMPTY if before is None else before.list_number
        steps_S4 = along.steps_S4
        if before is not None:
            steps_S4 = np.concatenate([before.steps_S4, along.steps_S4[1:]])
        is_back = before is not None and before.is_back
        self._add(key, (*of_token, *lists, int(is_back)), steps_S4, along.merged_J2, -1)

    def _add_whole(self, key: int, found: Categories, is_back: bool) -> None:
        tables = self.tables
        lists = tables.lists.add(found.moved), EMPTY
        row = found.base, found.own, found.num_own_labels, found.kinds, *lists, int(is_back)
        merged_J2 = np.array(found.merged, np.int64).reshape(-1, 2)
        self._add(key, row, tables.step_rows(found.steps), merged_J2, tables.shifts.number(found.shift))

    def _add(self, key: int, row: tuple[int, ...], steps_S4: np.ndarray, merged_J2: np.ndarray, shift: int) -> None:
        """row: the first columns of Tables.questions."""
        tables = self.tables
        self._number[key] = tables.questions.size
        tables.questions.extend(np.array([(*row, *tables.add_steps(steps_S4), *tables.add_merged(merged_J2), shift)]))
        tables.question_keys.extend(np.array([key], np.uint64))


_INSIDE = ("written", "outside", "covering", "inner", "own", "earlier", "previous")


def _meet(ids: np.ndarray, others: np.ndarray) -> bool:
    """Whether two sorted arrays share a value."""
    if not len(ids) or not len(others):
        return False
    place = np.searchsorted(others, ids)
    return bool((others[np.minimum(place, len(others) - 1)] == ids).any())
