"""What the alignment table claims beside its times: same groups where all contenders can, and what the scan loses."""

from __future__ import annotations

import pytest

from benchmarks import alignment, texts
from benchmarks.alignment import BYTE_LEVEL, KINDS, REPETITIVE, SENTENCEPIECE, Case, Group

ASCII = {"English": texts.english, "code": texts.code, "sums": texts.sums, "repetitive": texts.repetitive}


def _read(student: str, kind: str) -> Case:
    return Case.read(student, texts.take(ASCII[kind], 4000).encode("ascii", "ignore").decode())


def _content_units(case: Case) -> list[Group]:
    return [tuple(unit[:4]) for unit in alignment.ours(case)().units_U6[:-1].tolist()]


@pytest.mark.parametrize("kind", ASCII)
def test_contenders_agree_on_ascii(kind: str) -> None:
    case = _read(BYTE_LEVEL, kind)
    units = _content_units(case)
    assert units[-1][1] == len(case.student_ids)
    assert alignment.partition(case) == units
    assert alignment.scan(case) == units


@pytest.mark.parametrize("kind", ASCII)
def test_the_byte_partition_agrees_behind_a_dummy_prefix(kind: str) -> None:
    case = _read(SENTENCEPIECE, kind)
    assert alignment.partition(case) == _content_units(case)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ASCII)
def test_trl_agrees_on_ascii(kind: str) -> None:
    pytest.importorskip("trl")
    case = _read(BYTE_LEVEL, kind)
    run = alignment.trl_aligner(case)
    assert run is not None
    assert run() == _content_units(case)


def test_the_scan_loses_what_follows_a_character_in_pieces() -> None:
    case = Case.read(BYTE_LEVEL, texts.take(texts.cjk_emoji, 2000))
    assert alignment.ours(case)().coverage == 1.0
    assert sum(end - start for start, end, _, _ in alignment.scan(case)) < 0.1 * len(case.student_ids)


def test_the_table_has_its_rows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(alignment, "PATIENCE", 1e-9)
    monkeypatch.setattr(alignment, "find_spec", lambda name: None)
    alignment.main(lengths=(32, 64))
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    labels = ["worked sums", *(kind for kind in KINDS for _ in range(2)), *REPETITIVE]
    assert [cells[0].removeprefix("| ") for cells in rows] == labels
    assert {len(cells) for cells in rows} == {len(alignment.HEADERS)}
    assert {cells[alignment.HEADERS.index("BL: TRL")] for cells in rows} == {"not installed"}
    student, teacher = (int(count.replace(",", "")) for count in rows[0][1].split(" / "))
    assert student == alignment.RESPONSE_TOKENS
    assert teacher == pytest.approx(4411, abs=50)


def test_the_teacher_rewrites_the_rewritten_text() -> None:
    case = Case.read(SENTENCEPIECE, texts.take(texts.repetitive_rewritten, 1000))
    assert case.teacher.table.join(case.teacher_ids) != case.text.encode()
    assert 0.8 < alignment.ours(case)().coverage < 1


@pytest.mark.parametrize("make", [*ASCII.values(), texts.cjk_emoji, texts.repetitive_rewritten])
def test_texts_have_the_length_asked_for(make) -> None:
    assert len(texts.take(make, 12_345)) == 12_345
    assert texts.take(make, 100) == texts.take(make, 12_345)[:100]
