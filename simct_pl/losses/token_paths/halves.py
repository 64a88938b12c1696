"""The two halves of a question at a place where both models cut: asked once each, kept as rows of Tables.

In: Along and Before, questions to an Asker. Out: Half. What lies along the path behind the position comes back far more
often than together with what the tokens before it change.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from simct_pl.losses.token_paths import tables as columns
from simct_pl.losses.token_paths.asking import Asker
from simct_pl.losses.token_paths.categories import CLASSES, DROPPED, Categories, Crossings, Step
from simct_pl.losses.token_paths.neighbours import Front, Ids
from simct_pl.losses.token_paths.tables import Tables
from simct_pl.losses.token_paths.vocab_links import STOP

_MEMORY = 4096  # halves that are read from the tables
_NOTHING = Crossings({}, {}, (), (), 0, 0)
PLAIN = Categories(CLASSES, {}, [Step(CLASSES)], DROPPED, [], 0)


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


class Half:
    """A row of Tables.halves, and what it points at."""

    def __init__(self, tables: Tables, number: int) -> None:
        self._tables = tables
        self.base, self.own, self.num_own, self.kinds, self.list_number, *others = tables.halves.rows[number].tolist()
        self._reaching, self._moved, *places, self._contradicting = others
        (first_step, num_steps), (first_merged, num_merged) = places[:2], places[2:]
        self.steps_S4 = tables.steps.rows[first_step : first_step + num_steps]
        self.merged_J2 = tables.merged.rows[first_merged : first_merged + num_merged]

    @property
    def ids(self) -> np.ndarray:
        """Ids in the student's list, sorted."""
        return self._tables.lists.read(self.list_number)[:, 0]

    @property
    def labels(self) -> np.ndarray:
        return self._tables.lists.read(self.list_number)[:, 1]

    @cached_property
    def others(self) -> np.ndarray:
        """Ids whose labels the list goes by, sorted."""
        return np.unique(self._tables.parts.read(self._reaching)[:, 1])

    @property
    def lists_steps(self) -> bool:
        return bool(self.steps_S4[:, columns.STEP_LIST].any())

    @property
    def is_back(self) -> bool:
        """Whether teacher tokens go past the position."""
        return len(self.others) > 0

    @cached_property
    def categories(self) -> Categories:
        """Of what lies along a path."""
        lists = self._tables.lists
        steps = [Step(base, _labels(lists.read(number)), kinds) for base, kinds, number, _ in self.steps_S4.tolist()]
        merged = [(one, other) for one, other in self.merged_J2.tolist()]
        moved = _labels(lists.read(self.list_number))
        return Categories(self.base, moved, steps, self.own, merged, self.num_own, self.kinds)

    @cached_property
    def crossings(self) -> Crossings:
        """Of what lies before."""
        parts, main = self._tables.parts, self.steps_S4[-1]
        excluded = self._tables.lists.read(int(main[columns.STEP_LIST]))[:, 0]
        contradicting = parts.read(self._contradicting)[:, 0]
        return Crossings(
            _labels(parts.read(self._reaching)),
            _labels(parts.read(self._moved)),
            tuple(excluded.tolist()),
            tuple(contradicting.tolist()),
            self.kinds,
            int(main[columns.STEP_KINDS]),
        )


class Halves:
    """Of one pair."""

    def __init__(self, asker: Asker, tables: Tables) -> None:
        self.asker, self.links, self.tables = asker, asker.links, tables
        self._numbers = {key: number for number, key in enumerate(tables.half_keys.rows.tolist())}
        self._read = lru_cache(_MEMORY)(lambda number: Half(tables, number))

    def of(self, question: Along | Before) -> Half:
        """Asked, if it was not yet."""
        digest = hashlib.blake2b(repr(question).encode(), digest_size=8).digest()
        key = int.from_bytes(digest, "little")
        if key not in self._numbers:
            if isinstance(question, Along):
                self._add(key, self._along(question), _NOTHING)
            else:
                crossings = self.asker.before(
                    question.written, question.outside, question.last, question.earlier, question.own_earlier
                )
                self._add(key, crossed(PLAIN, crossings, None, self.links.student_label_K), crossings)
        return self._read(self._numbers[key])

    def _along(self, question: Along) -> Categories:
        """own is always listed: what is named is not dropped with its kind."""
        own_class = int(self.links.student_label_K[question.own])
        if self.links.same_tokenizer:
            return replace(PLAIN, own=own_class)
        if question.is_stop:
            return replace(PLAIN, own=STOP, moved={question.own: own_class})
        found = shortened(self.asker.behind(question.own, question.inner), question.ends_early)
        return replace(found, moved={question.own: own_class} | found.moved)

    def _add(self, key: int, found: Categories, crossings: Crossings) -> None:
        tables = self.tables
        steps = tables.add_steps(tables.step_rows(found.steps))
        merged = tables.add_merged(np.array(found.merged, np.int64).reshape(-1, 2))
        contradicting = dict.fromkeys(crossings.contradicting, DROPPED)
        parts = [tables.parts.add(part) for part in (crossings.reaching, crossings.moved, contradicting)]
        of_token = (found.base, found.own, found.num_own_labels, found.kinds, tables.lists.add(found.moved))
        self._numbers[key] = tables.halves.size
        tables.halves.extend(np.array([(*of_token, *parts[:2], *steps, *merged, parts[2])]))
        tables.half_keys.extend(np.array([key], np.uint64))


def crossed(found: Categories, crossings: Crossings, own: int | None, label_K: np.ndarray) -> Categories:
    """With what the tokens before the position change; a first step more where teacher tokens go past it.

    own: the realised student token, if it is told. label_K: the class of each student id.
    """
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


def shortened(found: Categories, ends_early: bool) -> Categories:
    """Without the step behind the stretch's last token: what would leave the path there is at its end."""
    if not ends_early or len(found.steps) == 1:
        return found
    *steps, behind = found.steps
    ends = {behind.base, *behind.listed.values()} - {found.own, DROPPED}
    merged = [*found.merged, *((label, found.own) for label in sorted(ends))]
    return replace(found, steps=steps, merged=merged)


def _labels(entries_E2: np.ndarray) -> dict[int, int]:
    return dict(entries_E2.tolist())
