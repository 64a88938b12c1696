"""How each tokenizer reads the other's tokens: with what may follow, of half characters, and from the disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simct_pl.losses.token_paths.vocab_links import REST, STOP, VocabLinks
from simct_pl.tokenization import readings as readings_module
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.tokenization.pair import TokenizerPair
from simct_pl.tokenization.readings import PairReadings, Reader, completions, cut_behind, kind
from tests.tokenization.small import byte_level, sentencepiece_bpe


def pair() -> TokenizerPair:
    student = ModelTokenizer(byte_level(("hello", "12")), name="student")
    return TokenizerPair(student, ModelTokenizer(sentencepiece_bpe(("hell", "123"), style="none"), name="teacher"))


def test_each_spelling_is_that_of_the_tokenizer_itself() -> None:
    sides = pair()
    student, teacher = Reader.of(sides.student), Reader.of(sides.teacher)
    found = PairReadings.build(student, teacher, cached=False)
    for source, reader, read in ((student, teacher, found.student), (teacher, student, found.teacher)):
        seen = set(read.sources)
        for token, spelling in zip(read.sources, read.spellings, strict=True):
            joined = reader.table.join(np.array(spelling))
            assert joined.startswith(source.table.tokens[token])
        for token in source.text_ids:
            data = source.table.tokens[token]
            (alone,) = reader.read([data])
            assert (alone is None) or (token in seen and tuple(alone) in dict_of(read)[token])
    hello = next(k for k, token in enumerate(student.table.tokens) if token == b"hello")
    hell = next(k for k, token in enumerate(teacher.table.tokens) if token == b"hell")
    assert [rest for token, rest in found.student.beginning_with([hell]) if token == hello] != []


def dict_of(read: readings_module.Readings) -> dict[int, set[tuple[int, ...]]]:
    found: dict[int, set[tuple[int, ...]]] = {}
    for token, spelling in zip(read.sources, read.spellings, strict=True):
        found.setdefault(token, set()).add(spelling)
    return found


def test_they_are_read_once_and_then_from_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMCT_PL_CACHE", str(tmp_path))
    sides = pair()
    student, teacher = Reader.of(sides.student), Reader.of(sides.teacher)
    first = PairReadings.build(student, teacher)
    monkeypatch.setattr(readings_module, "read_tokens", None)  # whoever reads again fails
    again = PairReadings.build(student, teacher)
    for one, other in ((first.student, again.student), (first.teacher, again.teacher)):
        for name in ("source_E", "offsets", "ids"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    with pytest.raises(TypeError):
        PairReadings.build(teacher, student)


def test_classes_link_equal_bytes_stop_with_stop_and_leave_the_rest() -> None:
    links = VocabLinks.of_pair(pair())
    student, teacher = links.student.table.tokens, links.teacher.table.tokens
    for v in links.student.text_ids:
        for w in (w for w in links.teacher.text_ids if teacher[w] == student[v]):
            assert links.student_label_K[v] == links.teacher_label_K[w] > STOP
    for reader, label_K in ((links.student, links.student_label_K), (links.teacher, links.teacher_label_K)):
        assert (label_K[list(reader.stop_ids)] == STOP).all()
        special = np.flatnonzero(reader.table.is_special_V)
        assert (label_K[np.setdiff1d(special, reader.stop_ids)] == REST).all()
    report = links.report()
    assert report.num_classes == links.num_labels - 2
    assert 0 < report.student_coarse < 1


def test_small_pairs_leave_nothing_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sides = pair()
    _ = sides.student.table, sides.teacher.table, sides.shared_vocab
    monkeypatch.setenv("SIMCT_PL_CACHE", str(tmp_path))
    VocabLinks.of_pair(sides)
    assert not list(tmp_path.glob("readings-*"))
    monkeypatch.setattr("simct_pl.losses.token_paths.vocab_links.SMALL", 1)
    VocabLinks.of_pair(sides)
    assert len(list(tmp_path.glob("readings-*"))) == 1


def test_completions_make_characters_of_their_beginnings() -> None:
    emoji = "😀".encode()
    for length in (1, 2, 3):
        found = [emoji[:length] + rest for rest in completions(emoji[:length])]
        assert found
        assert any(is_text(data) for data in found)
    assert list(completions(emoji[1:2])) == []


def is_text(data: bytes) -> bool:
    try:
        return len(data.decode()) == 1
    except UnicodeDecodeError:
        return False


def test_a_spelling_is_cut_behind_the_token_that_reaches_the_end() -> None:
    table = Reader.of(pair().student).table
    ids = [int(k) for data in (b"hello", b" ", b"1") for k in [table.tokens.index(data)]]
    assert cut_behind(table, ids, 5) == tuple(ids[:1])
    assert cut_behind(table, ids, 6) == tuple(ids[:2])


def test_kinds() -> None:
    assert [kind(character) for character in "aÉ1\n\t #"] == [
        "letter",
        "letter",
        "digit",
        "newline",
        "space",
        "space",
        "other",
    ]
