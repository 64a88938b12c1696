"""What was answered about a pair, kept on disk: a later process knows it, says the same, and trusts no other file."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from simct_pl.alignment import CommonBoundaryAligner
from simct_pl.losses.token_paths import kept
from simct_pl.losses.token_paths.asking import Asker
from simct_pl.losses.token_paths.kept import KeptAnswers
from simct_pl.losses.token_paths.lists import EMPTY, ListStore
from simct_pl.losses.token_paths.path_builder import PathBuilder
from simct_pl.losses.token_paths.paths import TokenPaths
from simct_pl.losses.token_paths.tables import Tables
from simct_pl.losses.token_paths.vocab_links import VocabLinks
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.tokenization.pair import TokenizerPair
from simct_pl.tokenization.readings import Reader
from tests.losses.test_token_neighbours import ROOT, trained

FIRST = "def total(values):\n    return sum(values) / 12.5  # the teacher's rows, one by one\n\nThe loss is 0.25.\n"
SECOND = FIRST + "    for row in rows:\n        yield row[3:17], total(row)\nWhat else does it return?\n"


@dataclass(frozen=True)
class Sides:
    pair: TokenizerPair
    links: VocabLinks

    @classmethod
    def of(cls, folder: Path) -> Sides:
        pair = TokenizerPair(*(ModelTokenizer.from_pretrained(str(folder / name)) for name in ("student", "teacher")))
        return cls(pair, VocabLinks.build(Reader.of(pair.student), Reader.of(pair.teacher), cached=False))

    def builder(self, is_kept: bool = True) -> PathBuilder:
        return PathBuilder(Asker(self.links), KeptAnswers.of(self.links) if is_kept else None)

    def paths(self, builder: PathBuilder, text: str) -> TokenPaths:
        return builder.build([CommonBoundaryAligner().align(self.pair.tokenize_text(text))])

    def known(self, text: str) -> dict[str, torch.Tensor]:
        """The paths of a text by a builder that must not ask."""
        builder = self.builder()
        builder.answers.ask = _refuse  # type: ignore[method-assign]
        return told(self.paths(builder, text))


def _refuse(*_: object) -> None:
    raise AssertionError("this was known")


def told(paths: TokenPaths) -> dict[str, torch.Tensor]:
    """All that reaches the sums, with each list's entries in order of their ids."""
    arrays = paths.on(torch.device("cpu"))
    moved, listed = (
        sorted(zip(*(getattr(arrays, name).tolist() for name in names), strict=True))
        for names in (
            ("moved_token_E", "moved_id_E", "moved_label_E"),
            ("listed_step_Q", "listed_id_Q", "listed_label_Q"),
        )
    )
    found = {name: getattr(paths, name) for name in ("base_N", "own_N", "num_own_N", "kinds_N")}
    steps = ("step_token_P", "step_row_P", "step_id_P", "step_base_P", "step_kinds_P")
    merged = ("merged_token_J", "merged_from_J", "merged_to_J")
    found |= {name: getattr(paths, name) for name in (*steps, *merged)}
    shifts = [(rows.tolist(), labels.tolist()) for rows, labels in arrays.shifted_students + arrays.shifted_teachers]
    return found | {
        "moved": torch.tensor(moved),
        "listed": torch.tensor(listed),
        "shifts": torch.tensor(hash_of(shifts)),
    }


def hash_of(value: object) -> list[int]:
    return list(repr(value).encode())


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, expected in one.items():
        assert torch.equal(expected, other[name]), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student learnt the project's code, the teacher its pages."""
    folder = tmp_path_factory.mktemp("pair")
    code, pages = ([p.read_text() for p in sorted(ROOT.glob(of))] for of in ("simct_pl/losses/*.py", "docs/*.md"))
    trained(folder / "student", code, 1500)
    trained(folder / "teacher", pages, 2500)
    return folder


@pytest.fixture(scope="module")
def sides(folder: Path) -> Sides:
    return Sides.of(folder)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, written after every question."""
    monkeypatch.setenv("SIMCT_PL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(kept, "LEAST_SHARE", 0.0)
    return tmp_path / "cache"


def written(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{kept.KIND}-*"))


def test_a_second_process_asks_nothing_and_says_the_same(folder: Path, sides: Sides, tmp_path: Path) -> None:
    expected = told(sides.paths(sides.builder(), SECOND))
    assert len(expected["moved"]) > 100
    assert len(expected["listed"]) > 100
    script = (
        "import sys, torch; from pathlib import Path; from tests.losses.test_kept_answers import SECOND, Sides; "
        "torch.save(Sides.of(Path(sys.argv[1])).known(SECOND), sys.argv[2])"
    )
    # Another seed of Python's hashes: no order of a set may decide anything.
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, str(folder), str(tmp_path / "found.pt")]
    subprocess.run(command, check=True, env=environment, cwd=ROOT, timeout=600)
    assert_same(expected, torch.load(tmp_path / "found.pt"))
    with pytest.raises(AssertionError, match="this was known"):
        sides.known(SECOND + "unheard of")


def test_new_text_behind_what_was_kept_is_answered_as_without(sides: Sides) -> None:
    expected = told(sides.paths(sides.builder(is_kept=False), SECOND))
    first = sides.builder()
    sides.paths(first, FIRST)
    later = sides.builder()
    assert later.answers.tables.questions.size == first.answers.tables.questions.size > 0
    assert later.answers.tables.halves.size > 0
    assert_same(expected, told(sides.paths(later, SECOND)))
    assert_same(expected, sides.known(SECOND))


@pytest.mark.parametrize("damage", ["cut", "flipped", "no archive"])
def test_a_damaged_file_is_removed_and_written_anew(sides: Sides, own_cache: Path, damage: str) -> None:
    expected = told(sides.paths(sides.builder(), FIRST))
    (file,) = written(own_cache)
    whole = file.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    file.write_bytes({"cut": whole[:middle], "flipped": flipped, "no archive": b"nothing"}[damage])
    with pytest.warns(UserWarning, match="damaged"):
        builder = sides.builder()
    assert builder.answers.tables.questions.size == 0
    assert not written(own_cache)
    assert_same(expected, told(sides.paths(builder, FIRST)))
    assert_same(expected, sides.known(FIRST))


def test_another_pairs_file_is_not_believed(folder: Path, sides: Sides, own_cache: Path) -> None:
    turned = TokenizerPair(sides.pair.teacher, sides.pair.student)
    links = VocabLinks.build(sides.links.teacher, sides.links.student, cached=False)
    other = Sides(turned, links)
    other.paths(other.builder(), FIRST)
    (file,) = written(own_cache)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sides.builder().answers.tables.questions.size == 0  # it has a name of its own
    mine = KeptAnswers.of(sides.links)
    assert mine is not None
    file.rename(own_cache / f"{kept.KIND}-{mine.fingerprint}.npz")
    with pytest.warns(UserWarning, match="another pair's"):
        assert sides.builder().answers.tables.questions.size == 0


def test_what_other_code_has_answered_is_asked_anew(sides: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    sides.paths(sides.builder(), SECOND)
    monkeypatch.setattr(kept, "code_version", lambda: "another")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        builder = sides.builder()
    assert builder.answers.tables.questions.size == 0
    sides.paths(builder, FIRST)  # fewer questions than the other code's
    sides.known(FIRST)


def test_of_several_ranks_the_first_writes_and_all_read(
    sides: Sides, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(kept.distributed, "get_rank", lambda: 1)
    sides.paths(sides.builder(), SECOND)
    assert not written(own_cache)
    monkeypatch.setattr(kept.distributed, "get_rank", lambda: 0)
    expected = told(sides.paths(sides.builder(), FIRST))
    monkeypatch.setattr(kept.distributed, "get_rank", lambda: 1)
    assert_same(expected, sides.known(FIRST))


def test_of_two_runs_the_one_that_knows_less_leaves_the_others(sides: Sides) -> None:
    one, other = sides.builder(), sides.builder()
    sides.paths(one, SECOND)
    sides.paths(other, FIRST)
    sides.known(SECOND)


def test_it_is_written_when_asking_has_taken_a_while_and_never_too_much(
    sides: Sides, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "LEAST_SECONDS", 10.0)
    monkeypatch.setattr(kept, "LEAST_SHARE", 0.1)
    tables = sides.builder().answers.tables
    mine, writes = KeptAnswers("a pair"), list[float]()
    monkeypatch.setattr(mine, "_write", lambda _: writes.append(mine._seconds))
    for _ in range(400):
        mine.asked(tables, 1.0)
    assert writes[:3] == [10.0, 20.0, 30.0]
    assert 20 < len(writes) < 40
    monkeypatch.setattr(kept, "MOST_KEPT", 10)
    monkeypatch.setattr(kept, "LEAST_SECONDS", 0.0)
    sides.paths(sides.builder(), FIRST)
    assert not written(own_cache)


def test_equal_lists_are_one_and_labels_are_looked_up() -> None:
    rng, store, lists = random.Random(0), ListStore(), [dict[int, int]()]
    assert store.add({}) == EMPTY
    for _ in range(50):
        ids = rng.sample(range(1000), rng.randrange(1, 40))
        lists.append({k: rng.randrange(-1, 50) for k in ids})
        assert store.add(lists[-1]) == len(lists) - 1
    entries = store.num_entries
    for number, labels in enumerate(lists):
        assert store.add(dict(reversed(labels.items()))) == number
        assert dict(store.read(number).tolist()) == labels
    assert store.num_entries == entries
    asked = [(number, k) for number in range(len(lists)) for k in [*lists[number], *rng.sample(range(1000), 20)]]
    list_Q, id_Q = np.array(asked).T
    expected = [lists[number].get(k, -9) for number, k in asked]
    assert store.labels(list_Q, id_Q, -9).tolist() == expected


def test_tables_of_two_pairs_are_refused() -> None:
    arrays = Tables().arrays()
    Tables.of(arrays)
    with pytest.raises(ValueError, match="not the tables of one pair"):
        Tables.of(arrays | {"question_keys": np.zeros(3, np.uint64)})
