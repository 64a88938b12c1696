"""Tables on disk: Parquet written whole or not at all, JSON for people; rows read back a few at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from simct_pl.errors import ExportError, MissingFileError, PromptDataError, first_line

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
ROWS_AT_A_TIME = 256


def write_parquet(path: Path, schema: pa.Schema, batches: Iterable[Sequence[dict[str, Any]]]) -> int:
    """Write batches of rows into a file that appears when it is complete and on the disk; returns the number of rows.

    Raises:
        ExportError: if it cannot be written; what the batches raise comes through as it is.
    """
    part, num_rows = _part(path), 0
    try:
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            writer = pq.ParquetWriter(part, schema)
        try:
            for rows in batches:  # what goes wrong in there is no trouble of this file
                with _writing(path):
                    writer.write_table(pa.Table.from_pylist(list(rows), schema))
                num_rows += len(rows)
        finally:
            with _writing(path):
                writer.close()
        with _writing(path):
            _put(part, path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)  # whatever stopped it, and whoever makes the rows
    return num_rows


def write_json(path: Path, content: Any) -> None:
    """Write a value as JSON, whole or not at all.

    Raises:
        ExportError: if it cannot be written.
    """
    part = _part(path)
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        _put(part, path)


def read_json(path: Path) -> dict[str, Any]:
    """An object that write_json wrote.

    Raises:
        MissingFileError, PromptDataError: if there is no such file, or it holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingFileError(f"{str(path)!r} does not exist.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise PromptDataError(
            f"{str(path)!r} cannot be read as JSON: {first_line(error)}. Remove its folder."
        ) from error
    if not isinstance(content, dict):
        raise PromptDataError(f"{str(path)!r} holds {content!r:.80}; expected an object. Remove its folder.")
    return content


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a file, or only some of their columns.

    Raises:
        MissingFileError, PromptDataError: if there is no such file, or it is no Parquet.
    """
    if not path.is_file():
        raise MissingFileError(f"{str(path)!r} does not exist.")
    try:
        # Row groups may hold a whole data set: a few rows at a time are made Python objects.
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS_AT_A_TIME, columns=list(columns) if columns else None):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise PromptDataError(f"{str(path)!r} cannot be read as Parquet: {error}.") from error


def schema_of(path: Path) -> pa.Schema:
    """The columns of a Parquet file.

    Raises:
        MissingFileError, PromptDataError: if there is no such file, or it is no Parquet.
    """
    if not path.is_file():
        raise MissingFileError(f"{str(path)!r} does not exist.")
    try:
        return pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise PromptDataError(f"{str(path)!r} cannot be read as Parquet: {error}.") from error


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise ExportError(f"{str(path)!r} cannot be written: {error}.") from error


def _part(path: Path) -> Path:
    """A hidden neighbour, which no pattern for finished files matches."""
    return path.with_name(f".{path.name}.{os.getpid()}")


def _put(part: Path, path: Path) -> None:
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    part.replace(path)
