"""Reads the rows of parquet files and of Arrow files, which save_to_disk of `datasets` writes."""

import datetime
import decimal
import json
import os
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from nemo_chameleon.data.readers.formats import PARQUET, DataFile
from nemo_chameleon.data.readers.packages import import_for
from nemo_chameleon.utils.errors import UserError

_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
_ROWS = 512  # rows that are converted together
_WITH_TEXT = (datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, uuid.UUID)


def read_rows(
    data: DataFile, columns: Collection[str] | None, without: Collection[str] = ()
) -> Iterator[tuple[bytes, float]]:
    """Yield the rows of a table as JSON objects.

    Args:
        data: a parquet or an Arrow file.
        columns: names of the columns that are needed; None for all.
        without: names of columns that are not needed, whatever is in them.

    Yields:
        The bytes of each row's JSON object, and the share of the file that was read so far. A date
        or another value that JSON has no form for is its text, and bytes are text in UTF-8.

    Raises:
        UserError: pyarrow is not installed, bytes are not UTF-8, or two columns have one name.
        OSError: the file is damaged.
    """
    arrow = import_for(f"{data.path}: parquet and Arrow files", "pyarrow")
    batches = _parquet if data.format == PARQUET else _arrow
    number = 0
    try:
        for batch, share in batches(data.path, columns, without):
            batch.validate(full=True)  # reading values beyond the end of a buffer ends the process
            if len(set(batch.schema.names)) < batch.num_columns:
                raise UserError(f"{data.path}: two columns have the same name: rename one of them")
            nested = [f.name for f in batch.schema if arrow.types.is_nested(f.type)]
            batch = _with_text_of_times(batch)
            for start in range(0, batch.num_rows, _ROWS):
                rows = batch.slice(start, _ROWS).to_pylist(maps_as_pydicts="strict")
                for row in rows:
                    number += 1
                    for column in nested:
                        row[column] = _without_nulls(row[column])
                    yield _as_object(row), share
    except _ValueError as error:
        raise UserError(f"{data.place(number)}: {error}") from error
    except (arrow.ArrowException, UnicodeDecodeError, KeyError) as error:
        raise OSError(f"the file is damaged: {' '.join(str(error).split())}") from error


def _with_text_of_times(batch: Any) -> Any:
    """Write the times of a batch as text; Python's own have no nanoseconds and end in year 9999."""
    import pyarrow as arrow

    for i, field in enumerate(batch.schema):
        if not arrow.types.is_temporal(field.type):
            continue
        column = batch.column(i)
        if arrow.types.is_timestamp(field.type) and field.type.tz is not None:
            column = column.cast(arrow.timestamp(field.type.unit, "UTC"))
        batch = batch.set_column(i, field.name, column.cast(arrow.string()))
    return batch


def _as_object(row: dict[str, Any]) -> bytes:
    try:
        return json.dumps(row, default=_as_json).encode()
    except _ValueError:
        for column, value in row.items():
            try:
                json.dumps(value, default=_as_json)
            except _ValueError as error:
                raise _ValueError(f"the column {column!r} has {error}") from error
        raise


class _ValueError(ValueError):
    """Raised for a value that JSON has no form for; the message says why."""


def _as_json(value: Any) -> str:
    """Return the text of a value that JSON has no form for: bytes are text, as Spark writes it."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise _ValueError("bytes that are not UTF-8, and so no text") from error
    if isinstance(value, _WITH_TEXT):
        return str(value)
    raise _ValueError(f"a value of type {type(value).__name__}, which JSON has no form for")


def _without_nulls(value: Any) -> Any:
    """Return a value without the fields of its objects that are null.

    All objects of a column have the fields of all others: what one of them lacks is null.
    """
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value


def _parquet(
    path: Path, columns: Collection[str] | None, without: Collection[str]
) -> Iterator[tuple[Any, float]]:
    import pyarrow as arrow
    from pyarrow import parquet

    # A name as bytes, because it need not be UTF-8.
    with arrow.OSFile(os.fsencode(path)) as source, parquet.ParquetFile(source) as file:
        total, read = max(1, file.metadata.num_rows), 0
        wanted = _needed(file.schema_arrow.names, columns, without)
        for batch in file.iter_batches(batch_size=_ROWS, columns=wanted):
            read += batch.num_rows
            yield batch, read / total


def _arrow(
    path: Path, columns: Collection[str] | None, without: Collection[str]
) -> Iterator[tuple[Any, float]]:
    import pyarrow as arrow

    with arrow.memory_map(os.fsencode(path)) as source:
        size = source.size()
        begins_file = source.read(6) == b"ARROW1"
        source.seek(max(0, size - len(_END_OF_STREAM)))
        if not begins_file and source.read() != _END_OF_STREAM:
            raise OSError("the file is damaged: it ends in the middle")
        source.seek(0)
        reader = arrow.ipc.open_file(source) if begins_file else arrow.ipc.open_stream(source)
        wanted = _needed(reader.schema.names, columns, without)
        if begins_file:
            count = reader.num_record_batches
            batches = ((reader.get_batch(i), (i + 1) / count) for i in range(count))
        else:
            batches = ((batch, source.tell() / size) for batch in reader)
        for batch, share in batches:
            yield batch if wanted is None else batch.select(wanted), share


def _needed(
    names: list[str], columns: Collection[str] | None, without: Collection[str]
) -> list[str] | None:
    """Return the columns to read; all of them where none is needed, so that an error names it."""
    wanted = [n for n in names if (columns is None or n in columns) and n not in without]
    return wanted if 0 < len(wanted) < len(names) else None
