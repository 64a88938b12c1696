"""What was answered about positions: asked once, kept as rows of numbers, looked up by a hash from then on.

In: what an Asker says. Out: Answers, tables that the path builder gathers from. A question at a place where both models
cut has two halves, each of which comes back far more often than the two together: what lies along the path behind the
position, and what the tokens before it change. Their lists are kept once and pointed at by both, unless the halves
speak of the same ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from simct_pl.losses.token_paths.asking import Asker
from simct_pl.losses.token_paths.categories import CLASSES, DROPPED, Categories, Crossings, Step
from simct_pl.losses.token_paths.lists import EMPTY, Growing, ListStore
from simct_pl.losses.token_paths.neighbours import Front, Ids
from simct_pl.losses.token_paths.shift import ShiftStore
from simct_pl.losses.token_paths.vocab_links import STOP

MOST_ENTRIES = 50_000_000  # of lists, and
MOST_QUESTIONS = 1_000_000  # that are kept; beyond, everything is asked anew

# Columns of Answers.questions …
BASE, OWN, NUM_OWN, KINDS, LIST_ALONG, LIST_BEFORE, IS_BACK = range(7)
FIRST_STEP, NUM_STEPS, FIRST_MERGED, NUM_MERGED, SHIFT = range(7, 12)
# … and of Answers.steps.
STEP_BASE, STEP_KINDS, STEP_LIST, STEP_SHIFT = range(4)

StepRow = tuple[int, int, int, int]


@dataclass(frozen=True)
class Along:
    """A question at a place where both models cut. own: the realised student token. inner: the teacher's tokens from
    the position on that end within it. ends_early, is_stop: see Places.
    """

    own: int
    inner: Ids
    ends_early: bool
    is_stop: bool


@dataclass(frozen=True)
class Before:
    """What lies before such a place; see Asker.before."""

    written: Ids
    outside: int
    last: int
    earlier: tuple[Front, ...]
    own_earlier: tuple[Front, ...]


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


@dataclass(frozen=True)
class _Half:
    """Categories whose lists are kept. ids: those in the student's list. others: ids whose labels the list goes by."""

    categories: Categories
    list_number: int
    steps: tuple[StepRow, ...]
    ids: np.ndarray
    others: np.ndarray


class Answers:
    """Of one pair. questions: int64, a row each. steps: the teacher's rows of each question. merged: (from, to)."""

    def __init__(self, asker: Asker) -> None:
        self.asker, self.links = asker, asker.links
        self.clear()

    def clear(self) -> None:
        """Forget everything; paths that were made before keep their lists."""
        self.lists, self.shifts = ListStore(), ShiftStore()
        self.questions, self.steps, self.merged = Growing(12), Growing(4), Growing(2)
        self._listed: dict[int, dict[int, int]] = {EMPTY: {}}
        self._number: dict[int, int] = {}
        self._halves: dict[Along | Before, _Half] = {}

    def make_room(self) -> None:
        """Clear if there is much."""
        if self.lists.num_entries > MOST_ENTRIES or self.questions.size > MOST_QUESTIONS:
            self.clear()

    def numbers(self, keys: list[int]) -> list[int]:
        """Rows of some questions; -1 for those that were not asked yet."""
        found = self._number.get
        return [found(key, -1) for key in keys]

    def labels(self, lists: list[int], ids: list[int], default: int) -> np.ndarray:
        """What steps' lists say of one id each, int64; `default` where it is not listed."""
        listed = self._listed
        return np.array([listed[number].get(k, default) for number, k in zip(lists, ids, strict=True)], np.int64)

    def ask(self, key: int, question: tuple[Along, Before | None] | Inside) -> None:
        """A question that was not asked yet."""
        if isinstance(question, Inside):
            found = self.asker.inside(*(getattr(question, name) for name in _INSIDE))
            found = self._written(found, question.written[-1])
            self._whole(key, _shortened(found, question.ends_early), is_back=False)
            return
        along, before = question
        half = self._half(along)
        if before is None:
            self._add(key, half.categories, (half.list_number, EMPTY), half.steps, is_back=False)
            return
        other = self._half(before)
        crossings = self.asker.before(*(getattr(before, name) for name in _BEFORE))
        is_back = bool(crossings.reaching)
        written = self._written(half.categories, before.written[-1])
        if written is not half.categories or _meet(half.ids, other.ids) or _meet(half.ids, other.others):
            self._whole(key, self._crossed(written, crossings, along.own), is_back)
            return
        both = replace(half.categories, kinds=other.categories.kinds)
        self._add(key, both, (half.list_number, other.list_number), (*other.steps, *half.steps[1:]), is_back)

    def _half(self, question: Along | Before) -> _Half:
        if question not in self._halves:
            if isinstance(question, Along):
                found = self._along(question)
                others: tuple[int, ...] = ()
            else:
                crossings = self.asker.before(*(getattr(question, name) for name in _BEFORE))
                found, others = self._crossed(_PLAIN, crossings, None), tuple(crossings.reaching.values())
            number = self.lists.add(found.moved)
            ids = np.array(sorted(found.moved), np.int64)
            self._halves[question] = _Half(found, number, self._kept_steps(found.steps), ids, np.unique(others))
        return self._halves[question]

    def _along(self, question: Along) -> Categories:
        """own is always listed: what is named is not dropped with its kind."""
        own_class = int(self.links.student_label_K[question.own])
        if self.links.same_tokenizer:
            return replace(_PLAIN, own=own_class)
        if question.is_stop:
            return replace(_PLAIN, own=STOP, moved={question.own: own_class})
        found = _shortened(self.asker.behind(question.own, question.inner), question.ends_early)
        return replace(found, moved={question.own: own_class} | found.moved)

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

    def _crossed(self, found: Categories, crossings: Crossings, own: int | None) -> Categories:
        """With what the tokens before the position change; a first step more where teacher tokens go past it."""
        label_K = self.links.student_label_K
        contradicting = dict.fromkeys(crossings.contradicting, DROPPED)
        known = found.moved | contradicting
        behind = {token: known.get(token, int(label_K[token])) for token in set(crossings.reaching.values())}
        moved = found.moved | {token: behind[like] for token, like in crossings.moved.items()} | contradicting
        if crossings.student_kinds:  # what is named is not dropped
            moved |= behind
        if own is not None:
            moved |= {own: found.moved[own]}
        steps = [crossings.main_step, *found.steps[1:]]  # none lists anything at a common cut
        if crossings.reaching:
            listed = dict(zip(crossings.reaching, map(behind.__getitem__, crossings.reaching.values()), strict=True))
            steps.insert(0, Step(DROPPED, listed))
        return replace(found, moved=moved, steps=steps, kinds=crossings.student_kinds)

    def _whole(self, key: int, found: Categories, is_back: bool) -> None:
        self._add(key, found, (self.lists.add(found.moved), EMPTY), self._kept_steps(found.steps), is_back)

    def _add(
        self,
        key: int,
        found: Categories,
        lists: tuple[int, int],
        steps: Sequence[StepRow],
        is_back: bool,
    ) -> None:
        merged = np.array(found.merged, np.int64).reshape(-1, 2)
        of_token = (found.base, found.own, found.num_own_labels, found.kinds, *lists, int(is_back))
        places = (self.steps.size, len(steps), self.merged.size, len(merged))
        self._number[key] = self.questions.size
        self.questions.extend(np.array([(*of_token, *places, self.shifts.number(found.shift))]))
        self.steps.extend(np.array(steps))
        self.merged.extend(merged)

    def _kept_steps(self, steps: Sequence[Step]) -> tuple[StepRow, ...]:
        """base, kinds and the numbers of the list and the shift of each step."""
        numbers = [self.lists.add(step.listed) for step in steps]
        self._listed |= {number: step.listed for number, step in zip(numbers, steps, strict=True)}
        return tuple(
            (step.base, step.kinds, number, self.shifts.number(step.shift))
            for step, number in zip(steps, numbers, strict=True)
        )


_PLAIN = Categories(CLASSES, {}, [Step(CLASSES)], DROPPED, [], 0)
_BEFORE = ("written", "outside", "last", "earlier", "own_earlier")
_INSIDE = ("written", "outside", "covering", "inner", "own", "earlier", "previous")


def _meet(ids: np.ndarray, others: np.ndarray) -> bool:
    """Whether two sorted arrays share a value."""
    if not len(ids) or not len(others):
        return False
    place = np.searchsorted(others, ids)
    return bool((others[np.minimum(place, len(others) - 1)] == ids).any())


def _shortened(found: Categories, ends_early: bool) -> Categories:
    """Without the step behind the stretch's last token: what would leave the path there is at its end."""
    if not ends_early or len(found.steps) == 1:
        return found
    *steps, behind = found.steps
    ends = {behind.base, *behind.listed.values()} - {found.own, DROPPED}
    merged = [*found.merged, *((label, found.own) for label in sorted(ends))]
    return replace(found, steps=steps, merged=merged)
