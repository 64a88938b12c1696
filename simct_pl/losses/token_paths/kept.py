"""What was answered about a pair, on disk: a later run of the pair knows it from the start.

In: Tables. Out: one file a pair, in the folder of simct_pl.tokenization.cache. It only saves time. It is written whole
or not at all, by the first rank alone, when asking has taken a while since; of two runs the one that knows less leaves
the other's. What another version of the code has made is not used, and a damaged file is removed.
"""

from __future__ import annotations

import hashlib
import warnings
from functools import cache as once
from pathlib import Path

import numpy as np
from torch import distributed

from simct_pl.losses.token_paths.tables import Tables
from simct_pl.losses.token_paths.vocab_links import SMALL, VocabLinks
from simct_pl.tokenization import cache, readings

KIND = "token-answers"
MOST_KEPT = 20_000_000  # entries, 160 MB; less than a run may hold, so that one that begins with them can learn more
LEAST_SECONDS = 10.0  # of asking before the answers are written, and
LEAST_SHARE = 0.1  # of all that was spent on asking: writing stays cheap beside it
_HEAD = ("pair", "code", "num_questions")


class KeptAnswers:
    """Of one pair. fingerprint: names it and the rules by which it was read."""

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self._seconds = self._unwritten = 0.0

    @classmethod
    def of(cls, links: VocabLinks) -> KeptAnswers | None:
        """None where asking costs nothing: one tokenizer, or cut-down ones."""
        if links.same_tokenizer or max(len(links.student.table), len(links.teacher.table)) < SMALL:
            return None
        return cls(readings.pair_fingerprint(links.student, links.teacher))

    def read(self) -> Tables:
        """What was kept; empty if there is nothing."""
        head = self._head()
        if head is None or str(head["code"]) != code_version():
            return Tables()
        arrays = cache.load_arrays(KIND, self.fingerprint, [*Tables().arrays()])
        try:
            if arrays is not None:
                return Tables.of(arrays)
        except (ValueError, IndexError):
            pass
        self._discard()
        return Tables()

    def asked(self, tables: Tables, seconds: float) -> None:
        """New questions have taken so many seconds; write if it is worth it."""
        self._seconds += seconds
        self._unwritten += seconds
        if self._unwritten >= max(LEAST_SECONDS, LEAST_SHARE * self._seconds) and _is_first_rank():
            self._unwritten = 0.0
            self._write(tables)

    def _write(self, tables: Tables) -> None:
        head, size = self._head(), tables.questions.size
        has_more = head is not None and str(head["code"]) == code_version() and int(head["num_questions"]) >= size
        if tables.num_entries > MOST_KEPT or has_more:
            return
        stamp = {"pair": self.fingerprint, "code": code_version(), "num_questions": size}
        arrays = {name: np.array(value) for name, value in stamp.items()} | tables.arrays()
        cache.save_arrays(KIND, self.fingerprint, arrays)

    def _head(self) -> dict[str, np.ndarray] | None:
        """Which pair and code a file is of; None if there is none."""
        head = cache.load_arrays(KIND, self.fingerprint, _HEAD)
        if head is not None and str(head["pair"]) == self.fingerprint:
            return head
        self._discard()
        return None

    def _discard(self) -> None:
        if path := cache.remove(KIND, self.fingerprint):
            warnings.warn(
                f"{path} was damaged, or another pair's, and is removed: what it told is asked anew.", stacklevel=2
            )


@once
def code_version() -> str:
    """Hash of the code that asks: answers are of one version of it."""
    digest = hashlib.blake2b(digest_size=16)
    for folder in (Path(__file__).parent, Path(readings.__file__).parent):
        for path in sorted(folder.glob("*.py")):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _is_first_rank() -> bool:
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0
