"""Tables on disk: Parquet written whole or not at all, JSON for people; rows read back a few at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from simct_pl.errors import MissingFileError, PromptDataError, first_line
from simct_pl.files.atomic import whole_file, write_errors

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_FUNCTION = pa.struct([("name", pa.string()), ("arguments", pa.string())])  # arguments as JSON
_CALL = pa.struct([("id", pa.string()), ("type", pa.string()), ("function", _FUNCTION)])
_OF_TOOLS = [("tool_calls", pa.list_(_CALL)), ("tool_call_id", pa.string()), ("name", pa.string())]
TOOL_MESSAGES = pa.list_(pa.struct([*MESSAGES.value_type, *(pa.field(*one) for one in _OF_TOOLS)]))
ROWS_AT_A_TIME = 256


def with_tools(schema: pa.Schema) -> pa.Schema:
    """The columns of a table whose messages call tools, in OpenAI's format, and whose rows have some (as JSON)."""
    place = schema.get_field_index("messages")
    return schema.set(place, pa.field("messages", TOOL_MESSAGES)).append(pa.field("tools", pa.string()))


def write_parquet(path: Path, schema: pa.Schema, batches: Iterable[Sequence[dict[str, Any]]]) -> int:
    """Write batches of rows into a file that appears when it is complete and on the disk; returns the number of rows.

    Raises:
        ExportError: if it cannot be written; what the batches raise comes through as it is.
    """
    num_rows = 0
    with whole_file(path) as part:
        with write_errors(path, pa.ArrowException):
            writer = pq.ParquetWriter(part, schema)
        try:
            for rows in batches:  # what goes wrong in there is no trouble of this file
                with write_errors(path, pa.ArrowException):
                    writer.write_table(pa.Table.from_pylist(list(rows), schema))
                num_rows += len(rows)
        finally:
            with write_errors(path, pa.ArrowException):
                writer.close()
    return num_rows


def write_json(path: Path, content: Any) -> None:
    """Write a value as JSON, whole or not at all.

    Raises:
        ExportError: if it cannot be written.
    """
    with whole_file(path) as part, write_errors(path):
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


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
