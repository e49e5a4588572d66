"""Finds the files of a path, and accounts for every file of a folder: read, or not and why."""

import fnmatch
import functools
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from nemo_chameleon.data.readers.formats import DataFile, recognize
from nemo_chameleon.data.readers.splits import require_one_split
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.logging import package_logger

logger = package_logger(__package__)

_HIDDEN, _BESIDE, _TOKENISED, _UNLISTED = (
    "hidden",
    "side files",
    "Megatron datasets",
    "not listed in state.json",
)
_SIDE_FILES = (
    "readme* license* licence* copying* notice* *.md dataset_info.json dataset_infos.json "
    "dataset_dict.json state.json _success *.crc *.lock *.sha256 *.md5 sha256sums md5sums "
    "cache-*.arrow"
).split()
_TOKENISED_FILES = "*.bin *.idx *.info.json *.unfinished.*".split()
_ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".jsonl.zst", ".parquet", ".txt")
_SHOWN = 2  # files of one kind that a message names


class Found(NamedTuple):
    """What a path holds.

    Attributes:
        files: the files to read, in the order of their names.
        left_out: the files of a folder that are not read, by reason, relative to the folder.
    """

    files: list[DataFile]
    left_out: dict[str, list[str]]


def find_files(path: str, where: str) -> Found:
    """Find the files that a path names: itself, or all that a folder and its subfolders hold.

    A message says what in a folder is not read.

    Args:
        path: a file or a folder.
        where: the key of the configuration and its value, or the path; errors begin with it.

    Returns:
        The files.

    Raises:
        UserError: there is no such file, the folder has nothing to read, a file in it looks like
            data and cannot be read, or its files are those of several splits.
    """
    place = Path(path)
    if not place.is_dir():
        _require_there(place, where)
        return Found([recognize(place)], {})
    files, left_out = [], defaultdict[str, list[str]](list)
    listed = functools.cache(_listed)
    try:
        for file in sorted(_walk(place)):
            if reason := _left_out(file, place, listed):
                left_out[reason].append(str(file.relative_to(place)))
            else:
                files.append(file)
    except OSError as error:
        raise UserError(f"{where}: cannot read the folder: {error}") from error
    said = _described(left_out)
    if not files:
        beside = f" (not read: {said})" if said else ""
        raise UserError(f"{where}: this folder has no file with data{beside}; name a file instead")
    try:
        found = [recognize(file) for file in files]
    except UserError as error:
        raise UserError(f"{where}: {error}; if it is no data, move it out of the folder") from error
    require_one_split(found, place, where)
    if said:
        _say(f"{where}: {len(found):,} file(s) are read; not read: {said}")
    return Found(found, dict(left_out))


@functools.cache
def _say(message: str) -> None:
    """Log a message once in a process, however often its folder is opened."""
    logger.info("%s", message)


def _require_there(place: Path, where: str) -> None:
    if str(place) == "-" or place.exists():
        return
    ending = next((end for end in _ENDINGS if Path(f"{place}{end}").is_file()), None)
    hint = f"; add the ending {ending}" if ending else ""
    raise UserError(f"{where}: there is no such file{hint}")


def _walk(folder: Path) -> Iterator[Path]:
    """Yield all files under a folder, through links, but no folder within itself."""
    above: dict[str, set[Path]] = {str(folder): {folder.resolve()}}

    def refuse(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        yield from (Path(place, name) for name in names)
        inside = []
        for name in folders:
            path = Path(place, name)
            if (resolved := path.resolve()) not in above[place]:
                above[str(path)] = above[place] | {resolved}
                inside.append(name)
        folders[:] = inside


def _left_out(
    file: Path, root: Path, listed: Callable[[Path], frozenset[str] | None]
) -> str | None:
    """Return why a file is not read; None if it is."""
    parts = file.relative_to(root).parts
    if any(part.startswith(".") for part in parts):
        return _HIDDEN
    name = file.name.lower()
    if _is_one_of(name, _SIDE_FILES):
        return _BESIDE
    if _is_one_of(name, _TOKENISED_FILES):
        return _TOKENISED
    if name.endswith(".arrow") and (names := listed(file.parent)) and file.name not in names:
        return _UNLISTED
    return None


def _is_one_of(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _listed(folder: Path) -> frozenset[str] | None:
    """Return the data files that save_to_disk of `datasets` has listed; None if it has not."""
    state = folder / "state.json"
    if not state.is_file():
        return None
    try:
        names = {entry["filename"] for entry in json.loads(state.read_text())["_data_files"]}
    except (ValueError, KeyError, TypeError):
        return None
    for name in names:
        if not (folder / name).is_file():
            raise UserError(f"{state} lists {name}, which is not there: copy the folder again")
    return frozenset(names)


def _described(left_out: dict[str, list[str]]) -> str:
    """Describe the files that are not read, in one line."""
    parts = []
    for reason, names in left_out.items():
        more = ", ..." if len(names) > _SHOWN else ""
        parts.append(f"{len(names):,} {reason} ({', '.join(names[:_SHOWN])}{more})")
    return ", ".join(parts)
