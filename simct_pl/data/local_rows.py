"""Rows of one data file on disk, one by one: a path in, dictionaries out, as they stand in the file.

JSON is read line by line by Python's own parser: Arrow's ends the process on values nested 100,000 deep, and gives all
rows the types of the first ones. CSV cells stay texts: `007` is an answer, not a number. The name of a file is never
taken for a pattern.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, cast

import pandas as pd
import pyarrow as pa
from datasets.exceptions import DatasetsError

from simct_pl.errors import PromptDataError, SimctError, first_line
from simct_pl.files.parquet import read_parquet

Row = dict[str, Any]
MAX_LINE_BYTES = 1 << 30  # a file without line breaks must not fill the memory
CSV_ROWS_AT_A_TIME = 256
# By their first bytes, not by the file's name: a download may have lost its ending, or kept it after unpacking.
COMPRESSIONS: dict[bytes, Callable[[str], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"\x28\xb5\x2f\xfd": lambda path: BufferedReader(pa.input_stream(path, compression="zstd")),
}
# What readers and decompressors raise on a file that is cut short or damaged. RuntimeError: a generator of `datasets`
# that finds nothing, or values nested too deep.
BROKEN = (OSError, ValueError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, DatasetsError, RuntimeError)


def local_rows(path: str) -> Iterator[Row]:
    """The rows of a .jsonl, .json, .csv or .parquet file, which may be compressed (gzip, bzip2, xz, zstandard).

    Raises:
        PromptDataError: naming the file, and the row where one is to blame.
    """
    suffixes = [suffix for suffix in Path(path).suffixes if suffix in READERS]
    with naming(path):
        yield from READERS[suffixes[-1]](path)


@contextmanager
def naming(path: str, fix: str = "") -> Iterator[None]:
    """What a reader finds broken becomes an error that names the file.

    fix: what else to look at, as a sentence.

    Raises:
        PromptDataError: that one.
    """
    try:
        yield
    except BROKEN as error:
        if isinstance(error, SimctError):
            raise
        why = first_line(error)
        if isinstance(error, UnicodeDecodeError):
            why += "; expected UTF-8: save it in that encoding"
        elif isinstance(error, EOFError | zlib.error | lzma.LZMAError | gzip.BadGzipFile):
            why += "; the compressed file is cut short or damaged: fetch or make it again"
        raise PromptDataError(f"Prompts {path!r} cannot be read: {why.rstrip('.')}. {fix}".rstrip()) from error


def _json_rows(path: str) -> Iterator[Row]:
    """Objects one a line, or one list of them, which is read as a whole."""
    with _opened(path) as file:
        # The first line that says something tells a list from one object a line.
        line, number = b"", 0
        while not line.strip() and (line := file.readline(MAX_LINE_BYTES)):
            number += 1
        line = line.removeprefix(b"\xef\xbb\xbf")  # the mark that some editors put in front of UTF-8
        if line.lstrip().startswith(b"["):
            yield from _listed_rows(path, line + file.read())
            return
        while line:
            if len(line) == MAX_LINE_BYTES:
                raise PromptDataError(f"Line {number} of {path!r} has more than {MAX_LINE_BYTES} bytes; split it up.")
            if line.strip():
                yield _as_row(f"Line {number} of {path!r}", _parsed(f"Line {number} of {path!r}", line))
            line, number = file.readline(MAX_LINE_BYTES), number + 1


def _listed_rows(path: str, content: bytes) -> Iterator[Row]:
    for index, value in enumerate(_parsed(repr(path), content)):
        yield _as_row(f"Row {index} of {path!r}", value)


def _parsed(place: str, content: bytes) -> Any:
    """A value written as JSON, whose objects name nothing twice; place: what errors call it."""
    try:
        return json.loads(content.decode(), object_pairs_hook=_object)
    except RecursionError as error:
        raise PromptDataError(f"{place} holds values nested too deep; leave that field out.") from error
    except UnicodeDecodeError:
        raise
    except ValueError as error:
        raise PromptDataError(
            f"{place} is no JSON: {error}. Expected an object a line, or one list of them."
        ) from error


def _object(pairs: list[tuple[str, Any]]) -> Row:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object names {twice!r} twice")  # readers differ in which of the two counts
    return found


def _as_row(place: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise PromptDataError(f'{place} is {value!r:.80}; expected an object, such as {{"prompt": "1+2?"}}.')
    return value


def _csv_rows(path: str) -> Iterator[Row]:
    """Rows below a line of column names; all cells are texts, empty ones too."""
    with _opened(path) as file:
        for frame in pd.read_csv(file, dtype=str, keep_default_na=False, chunksize=CSV_ROWS_AT_A_TIME):
            yield from cast(list[Row], frame.to_dict("records"))


def _parquet_rows(path: str) -> Iterable[Row]:
    return read_parquet(Path(path))


def _opened(path: str) -> IO[bytes]:
    with open(path, "rb") as file:  # opened again below: decompressors want it from its start
        beginning = file.read(6)
    for mark, unpack in COMPRESSIONS.items():
        if beginning.startswith(mark):
            return cast(IO[bytes], unpack(path))
    return open(path, "rb")


READERS: dict[str, Callable[[str], Iterable[Row]]] = {
    ".jsonl": _json_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
