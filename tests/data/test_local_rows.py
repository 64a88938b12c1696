"""Files on disk: read as they stand, whatever they are called; and what is broken, named."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simct_pl.data.local_rows import local_rows
from simct_pl.data.prompts import PromptDataModule, PromptStream
from simct_pl.data.source import PromptSource
from simct_pl.errors import PromptDataError

ROWS = [{"prompt": os.urandom(30).hex(), "n": i} for i in range(4000)]


def compress_zstd(data: bytes) -> bytes:
    packed: bytes = pa.Codec("zstd").compress(data, asbytes=True)
    return packed


COMPRESSORS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": compress_zstd}


def lines(rows: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def number_read(path: Path) -> int:
    """Prompts that a data module gives out of a file."""
    module = PromptDataModule(PromptSource(str(path)), batch_size=64, shuffle_buffer=0)
    module.setup("fit")
    return sum(len(batch) for batch in module.train_dataloader())


@pytest.mark.parametrize("name", COMPRESSORS)
def test_compressed_files_are_read_whole_or_refused_by_name(tmp_path: Path, name: str) -> None:
    packed = COMPRESSORS[name](lines(ROWS))
    path = tmp_path / f"a.jsonl.{name}"
    path.write_bytes(packed)
    assert list(local_rows(str(path))) == ROWS
    path.write_bytes(packed + packed)  # as `cat` and parallel compressors make them
    assert list(local_rows(str(path))) == ROWS + ROWS
    for damaged in (packed[:-2000], packed[:-1], packed[:1000] + bytes(50) + packed[1050:], packed[:6]):
        path.write_bytes(damaged)
        with pytest.raises(PromptDataError, match=rf"a\.jsonl\.{name}"):
            number_read(path)


def test_a_compressed_file_may_have_lost_its_ending(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(lines(ROWS[:5])))
    assert number_read(tmp_path / "a.jsonl") == 5
    (tmp_path / "b.jsonl.gz").write_bytes(lines(ROWS[:5]))  # unpacked on the way
    assert number_read(tmp_path / "b.jsonl.gz") == 5


@pytest.mark.parametrize("damage", ["cut", "hole", "footer"])
def test_parquet_that_is_damaged_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=1000)
    assert list(local_rows(str(path))) == ROWS
    content = path.read_bytes()
    middle = len(content) // 2
    damaged = {
        "cut": content[:middle],
        "hole": content[: middle - 20_000] + bytes(40_000) + content[middle + 20_000 :],
        "footer": content[:-8] + b"\xff\xff\xff\x00" + content[-4:],
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(PromptDataError, match=r"a\.parquet"):
        number_read(path)


@pytest.mark.parametrize("name", ["a[b]*?.jsonl", "{a,b}.jsonl", "[!a].csv", "**.json", "a b's #1 %20.jsonl"])
def test_names_are_no_patterns(tmp_path: Path, name: str) -> None:
    (tmp_path / "ab.jsonl").write_bytes(lines(ROWS[:9]))  # what a pattern would find
    (tmp_path / "b.csv").write_text("prompt\nx\ny\n")
    (tmp_path / name).write_bytes(b"prompt\nx\n" if name.endswith(".csv") else lines(ROWS[:1]))
    assert number_read(tmp_path / name) == 1


def test_values_nested_too_deep_are_refused_and_the_process_lives(tmp_path: Path) -> None:
    code = "from simct_pl.data.source import PromptSource\nfrom simct_pl.errors import PromptDataError\n"
    for name, opening, closing in (("a.jsonl", "[", "]"), ("b.jsonl", '{"a":', "}")):
        extra = opening * 100_000 + "1" + closing * 100_000
        (tmp_path / name).write_text('{"prompt": "x"}\n{"prompt": "x", "extra": ' + extra + "}\n")
        code += f"try: list(PromptSource({str(tmp_path / name)!r}).rows())\nexcept PromptDataError as e: print(e)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, "the process died"
    assert done.stdout.count("nested too deep") == 2
    assert "Line 2 of" in done.stdout


@pytest.mark.parametrize("depth", [100, 700, 980])
def test_values_nested_less_deep_are_read_or_refused(tmp_path: Path, depth: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "x", "extra": ' + "[" * depth + "]" * depth + "}\n")
    for source in (PromptSource(str(path)), PromptSource(str(path), answer_field="extra")):
        with pytest.raises(PromptDataError, match="too deep") if depth == 980 else nullcontext():
            assert len(list(PromptStream(source))) == 1


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ('{"prompt": "x", "prompt": "y"}', "names 'prompt' twice"),
        ('{"prompt": "x", "a": {"b": 1, "b": 1}}', "names 'b' twice"),
        ('{"prompt": "x", "n": ' + "1" * 5000 + "}", "4300 digits"),
        ('"x"', "is 'x'; expected an object"),
        ("[1, 2]", "Line 2 .* expected an object"),
        ('{"prompt": "x"', "Line 2 .* is no JSON"),
        ('{"prompt": "x"} {"prompt": "y"}', "Line 2 .* is no JSON"),
    ],
)
def test_lines_that_are_no_rows_are_named(tmp_path: Path, line: str, match: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "x"}\n' + line + "\n")
    with pytest.raises(PromptDataError, match=match):
        number_read(tmp_path / "a.jsonl")


def test_numbers_of_any_size_and_no_numbers_are_read_where_nothing_asks_for_them(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "x", "n": NaN, "big": 123456789012345678901234567890, "inf": -Infinity}\n')
    assert number_read(path) == 1
    [(index, row)] = PromptSource(str(path)).rows()
    assert PromptSource(str(path), answer_field="big").prompt(index, row).answer == "123456789012345678901234567890"
    with pytest.raises(PromptDataError, match=r"Row 0 .* has no 'n'"):
        PromptSource(str(path), answer_field="n").prompt(index, row)


def test_rows_need_not_have_the_types_of_the_first(tmp_path: Path) -> None:
    rows = [{"prompt": "x", "a": 1}, {"prompt": [{"role": "user", "content": "y"}], "a": "2"}, {"prompt": "z"}]
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    assert list(local_rows(str(tmp_path / "a.jsonl"))) == rows
    assert number_read(tmp_path / "a.jsonl") == 3


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-32"])
def test_other_encodings_are_named(tmp_path: Path, encoding: str) -> None:
    for name, text in (("a.jsonl", '{"prompt": "é"}\n'), ("a.csv", "prompt\né\n")):
        (tmp_path / name).write_bytes(text.encode(encoding))
        with pytest.raises(PromptDataError, match=rf"{name}.*UTF-8"):
            number_read(tmp_path / name)


def test_marks_blank_lines_and_lists(tmp_path: Path) -> None:
    for content in (b"\xef\xbb\xbf%s", b"\n  \n%s\r\n\r\n"):
        (tmp_path / "a.jsonl").write_bytes(content % lines(ROWS[:2]).replace(b"\n", b"\r\n"))
        assert list(local_rows(str(tmp_path / "a.jsonl"))) == ROWS[:2]
    (tmp_path / "a.json").write_text(json.dumps(ROWS[:7], indent=1))
    assert list(local_rows(str(tmp_path / "a.json"))) == ROWS[:7]
    (tmp_path / "a.json").write_text(json.dumps([ROWS[0], "x"]))
    with pytest.raises(PromptDataError, match=r"Row 1 of .* is 'x'; expected an object"):
        list(local_rows(str(tmp_path / "a.json")))


def test_a_line_of_100_megabytes_is_a_row_and_a_file_without_lines_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": "' + b"x" * 100_000_000 + b'"}\n{"prompt": "y"}\n')
    source = PromptSource(str(path), max_prompt_chars=1000)
    module = PromptDataModule(source, shuffle_buffer=0)
    assert [len(batch) for batch in module.train_dataloader()] == [1]
    monkeypatch.setattr("simct_pl.data.local_rows.MAX_LINE_BYTES", 1_000_000)
    with pytest.raises(PromptDataError, match=r"Line 1 of .* more than 1000000 bytes"):
        list(local_rows(str(path)))


def test_csv_cells_are_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt,answer\n"1+2, and\n""3""?",007\nNA,\n', encoding="utf-8")
    assert list(local_rows(str(path))) == [
        {"prompt": '1+2, and\n"3"?', "answer": "007"},
        {"prompt": "NA", "answer": ""},
    ]
    with pytest.raises(PromptDataError, match=r"Row 1 .* has no 'answer'"):
        [PromptSource(str(path), answer_field="answer").prompt(*row) for row in PromptSource(str(path)).rows()]


@pytest.mark.parametrize("content", ["prompt,answer\na,b,c,d\nx,y\nx,y,z\n", 'prompt\n"open\n', "\n\n"])
def test_csv_that_is_broken_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(PromptDataError, match=r"a\.csv"):
        number_read(tmp_path / "a.csv")
