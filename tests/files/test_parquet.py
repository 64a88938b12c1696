"""Files that appear whole or not at all, and errors that say whose they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from simct_pl.errors import ExportError, MissingFileError, PromptDataError, RunInterrupted
from simct_pl.files.parquet import read_json, read_parquet, write_json, write_parquet

SCHEMA = pa.schema([("n", pa.int64())])


def rows(error: Exception | None) -> Iterator[list[dict[str, Any]]]:
    yield [{"n": 1}, {"n": 2}]
    if error is not None:
        raise error


def test_rows_come_back(tmp_path: Path) -> None:
    assert write_parquet(tmp_path / "new/t.parquet", SCHEMA, rows(None)) == 2
    assert list(read_parquet(tmp_path / "new/t.parquet")) == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize("error", [RunInterrupted("SIGTERM"), BlockingIOError(11, "no more processes"), KeyError("x")])
def test_what_goes_wrong_while_rows_are_made_is_not_blamed_on_the_file(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        write_parquet(tmp_path / "t.parquet", SCHEMA, rows(error))
    assert raised.value is error
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for write in (lambda path: write_parquet(path, SCHEMA, rows(None)), lambda path: write_json(path, {})):
        with pytest.raises(ExportError, match=r"file/t' cannot be written"):
            write(tmp_path / "file/t")
    with pytest.raises(ExportError, match=r"t.parquet' cannot be written"):
        write_parquet(tmp_path / "t.parquet", SCHEMA, iter([[{"n": "no number"}]]))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_json_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"a.json' does not exist"):
        read_json(tmp_path / "a.json")
    for content in (b"", b"{", b"[1]", b"3", b"null", b"\xff\x00", b"[" * 100_000):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(PromptDataError, match=r"a.json'"):
            read_json(tmp_path / "a.json")
