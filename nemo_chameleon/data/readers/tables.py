"""Reads the rows of parquet files and of Arrow files, which save_to_disk of `datasets` writes."""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from nemo_chameleon.data.readers.compression import EXTRA
from nemo_chameleon.data.readers.formats import PARQUET, DataFile
from nemo_chameleon.utils.errors import UserError

_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
_ROWS = 512  # rows that are converted together


def read_rows(data: DataFile, columns: Collection[str] | None) -> Iterator[tuple[bytes, float]]:
    """Yield the rows of a table as JSON objects.

    Args:
        data: a parquet or an Arrow file.
        columns: names of the columns that are needed; None for all.

    Yields:
        The bytes of each row's JSON object, and the share of the file that was read so far.

    Raises:
        UserError: pyarrow is not installed.
        OSError: the file is damaged.
    """
    try:
        import pyarrow as arrow
    except ImportError as error:
        raise UserError(f"{data.path}: parquet and Arrow files need pyarrow: {EXTRA}") from error
    batches = _parquet if data.format == PARQUET else _arrow
    try:
        for batch, share in batches(data.path, columns):
            for start in range(0, batch.num_rows, _ROWS):
                for row in batch.slice(start, _ROWS).to_pylist():
                    # A value that JSON has no form for, such as a date, becomes its text.
                    yield json.dumps(row, default=str).encode(), share
    except (arrow.ArrowException, UnicodeDecodeError) as error:
        raise OSError(f"the file is damaged: {' '.join(str(error).split())}") from error


def _parquet(path: Path, columns: Collection[str] | None) -> Iterator[tuple[Any, float]]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        total, read = max(1, file.metadata.num_rows), 0
        wanted = _needed(file.schema_arrow.names, columns)
        for batch in file.iter_batches(batch_size=_ROWS, columns=wanted):
            read += batch.num_rows
            yield batch, read / total


def _arrow(path: Path, columns: Collection[str] | None) -> Iterator[tuple[Any, float]]:
    import pyarrow as arrow

    with arrow.memory_map(str(path)) as source:
        size = source.size()
        begins_file = source.read(6) == b"ARROW1"
        source.seek(max(0, size - len(_END_OF_STREAM)))
        if not begins_file and source.read() != _END_OF_STREAM:
            raise OSError("the file is damaged: it ends in the middle")
        source.seek(0)
        reader = arrow.ipc.open_file(source) if begins_file else arrow.ipc.open_stream(source)
        wanted = _needed(reader.schema.names, columns)
        if begins_file:
            count = reader.num_record_batches
            batches = ((reader.get_batch(i), (i + 1) / count) for i in range(count))
        else:
            batches = ((batch, source.tell() / size) for batch in reader)
        for batch, share in batches:
            yield batch if wanted is None else batch.select(wanted), share


def _needed(names: list[str], columns: Collection[str] | None) -> list[str] | None:
    """Return the columns to read; all of them where none is needed, so that an error names it."""
    wanted = [name for name in names if columns is None or name in columns]
    return wanted if columns is not None and wanted else None
