"""Finds the files of a path, and accounts for every file: read, or not and why.

A path is a file, a folder with all that is below it, or a glob of files and folders.
"""

import fnmatch
import functools
import glob
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from nemo_chameleon.data.parts import fixed_folder, require_once
from nemo_chameleon.data.readers.formats import COMPRESSED, TEXT, DataFile, recognize
from nemo_chameleon.data.shards import require_whole_sets
from nemo_chameleon.data.splits import require_one_split
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.logging import package_logger

logger = package_logger(__package__)

_HIDDEN, _NO_FILE, _CACHED, _UNFINISHED, _BESIDE, _TOKENISED, _UNLISTED = (
    "hidden",
    "pipes or devices",
    "of a Hugging Face cache, beside its snapshots",
    "unfinished or backups",
    "side files",
    "Megatron datasets",
    "not listed in state.json",
)
_SIDE_FILES = (
    "readme readme.* license license[.-]* licence licence[.-]* copying copying.* notice notice.* "
    "*.md dataset_info.json dataset_infos.json "
    "dataset_dict.json state.json _success *.crc *.lock *.sha256 *.md5 sha256sums md5sums "
    "cache-*.arrow"
).split()
_UNFINISHED_FILES = "*.tmp *.bak *~ *.incomplete *.part *.partial *.crdownload *.swp".split()
_TOKENISED_FILES = "*.bin *.idx *.info.json *.unfinished.*".split()
_ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".jsonl.zst", ".parquet", ".txt")
_RECORDS = (".jsonl", ".ndjson", ".jsonlines", ".json", ".parquet", ".arrow")
_SHOWN = 2  # files of one kind that a message names


class Source(NamedTuple):
    """A file or a folder that was named, or that a glob matches.

    Attributes:
        path: the file or the folder.
        files: the files that are read of it, in the order of their names.
    """

    path: Path
    files: list[DataFile]


def files_of(sources: Sequence[Source]) -> tuple[list[DataFile], list[DataFile]]:
    """Return the files of sources, one after the other.

    Args:
        sources: what `find_files` returns.

    Returns:
        The files; and the same files as messages name them that already name their source.
    """
    every = [(file, source.path) for source in sources for file in source.files]
    return [file for file, _ in every], [file.below(path) for file, path in every]


def find_files(paths: Sequence[str], key: str = "") -> list[Source]:
    """Find the files that paths name.

    A message says what is not read of a folder or of the matches of a glob.

    Args:
        paths: files; folders, which are read with their subfolders; globs of both. A path that
            exists is taken as it is written. The standard input is "-".
        key: the key of the configuration that has the paths; errors begin with it.

    Returns:
        What is read, in the order of the paths; the matches of a glob are sorted by name.

    Raises:
        UserError: there is no such file, a folder or a glob has nothing to read, a file in it looks
            like data and cannot be read, its files are those of several splits, or records beside
            plain text, or the same file compressed and not, or a numbered set of which one is
            missing, or a file is there twice.
    """
    found: list[Source] = []
    for path in paths:
        where = f"{key}={path}" if key else path
        if glob.has_magic(path) and not Path(path).exists():
            found += _of_glob(path, where)
        elif Path(path).is_dir():
            found += _accounted([Path(path)], Path(path), where, path)
        else:
            _require_there(Path(path), where)
            found.append(Source(Path(path), [recognize(Path(path))]))
    files = [file.path for source in found for file in source.files]
    require_once([(_identity(file), str(file)) for file in files], key or "the files to read")
    return found


def _identity(file: Path) -> str:
    return "-" if str(file) == "-" else str(file.resolve())


def _of_glob(pattern: str, where: str) -> list[Source]:
    # A pathlib glob takes no absolute pattern.
    matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207
    if "**" in pattern:  # it matches the folders above its files too
        matches = [match for match in matches if not match.is_dir()]
    if not matches:
        raise UserError(f"{where}: the glob matches no file")
    return _accounted(matches, fixed_folder(pattern), where, pattern)


def _accounted(matches: list[Path], root: Path, where: str, path: str) -> list[Source]:
    """Find what is read of files and folders under a root, and say what is not."""
    left_out = defaultdict[str, list[str]](list)
    listed = functools.cache(_listed)
    sources: list[tuple[Path, list[Path]]] = []
    try:
        for match in matches:
            kept = []
            for file in sorted(_walk(match)) if match.is_dir() else [match]:
                if reason := _left_out(file, root, path, listed):
                    left_out[reason].append(str(file.relative_to(root)))
                else:
                    kept.append(file)
            if kept:
                sources.append((match, kept))
    except OSError as error:
        raise UserError(f"{where}: cannot read the folder: {error}") from error
    said = _described(left_out)
    if not sources:
        beside = f" (not read: {said})" if said else ""
        raise UserError(f"{where}: there is no file with data{beside}; name a file instead")
    try:
        found = [Source(match, [recognize(file) for file in kept]) for match, kept in sources]
    except UserError as error:
        raise UserError(f"{where}: {error}; if it is no data, move it out of the folder") from error
    files = [file for source in found for file in source.files]
    texts = frozenset(file.path for file in files if file.format == TEXT)
    require_one_split([file.path for file in files], root, where, texts=texts)
    _require_one_kind(files, root, where, path)
    _require_one_copy(files, where)
    folders = {match for match, _ in sources if match.is_dir()}
    asked = Path(path).name

    def is_matched(file: Path) -> bool:
        return not folders.isdisjoint(file.parents) or fnmatch.fnmatchcase(file.name, asked)

    require_whole_sets([file.path for file in files], where, is_matched)
    if said:
        _say(f"{where}: {len(files):,} file(s) are read; not read: {said}")
    return found


def _require_one_copy(files: Sequence[DataFile], where: str) -> None:
    """Refuse a file beside itself, compressed or in another format of records."""
    known: dict[Path, Path] = {}
    for file in files:
        path = plain = file.path
        if plain.suffix.lower() in COMPRESSED:
            plain = plain.with_suffix("")
        if file.format != TEXT and plain.suffix.lower() in _RECORDS:
            plain = plain.with_suffix("")
        if plain in known:
            raise UserError(
                f"{where}: {known[plain].name} and {path.name} in {path.parent} have one name, as "
                "if they were the same documents twice: move one of them out of the folder, or "
                "name the files one by one to read both"
            )
        known[plain] = path


def _require_one_kind(files: Sequence[DataFile], root: Path, where: str, path: str) -> None:
    """Refuse plain text beside records: it is a script or a log more often than a document."""
    texts = [file.path for file in files if file.format == TEXT]
    records = [file.path for file in files if file.format != TEXT]
    if not texts or not records:
        return
    ending = "".join(records[0].suffixes[-2 if records[0].suffix in COMPRESSED else -1 :])
    below = "" if all(file.parent == root for file in records) else "**/"
    alike = root / f"{below}*{ending}" if ending else records[0]
    named = f"{where.removesuffix(path)}{alike}"
    raise UserError(
        f"{where}: there are files of records, such as {records[0].relative_to(root)}, and files "
        f"that would be read as plain text, such as {texts[0].relative_to(root)}; name those of "
        f"one kind, such as '{named}', or several paths to read both"
    )


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
        inside, known = [], above[str(Path(place))]  # os.walk writes ./sub, and Path sub
        for name in folders:
            path = Path(place, name)
            if (resolved := path.resolve()) not in known:
                above[str(path)] = known | {resolved}
                inside.append(name)
        folders[:] = inside


def _left_out(
    file: Path, root: Path, named: str, listed: Callable[[Path], frozenset[str] | None]
) -> str | None:
    """Return why a file is not read; None if it is.

    A glob such as *.md names an ending, so that files with this ending are no side files.

    Raises:
        UserError: it is a link to nothing.
    """
    parts = file.relative_to(root).parts
    above = file.parents[: len(parts) - 1]
    if any(part.startswith(".") for part in parts):
        return _HIDDEN
    if not file.exists():
        raise UserError(
            f"{file} is a link to a file that is not there: copy the file, or remove it"
        )
    if not file.is_file():
        return _NO_FILE
    if any(up.name in ("blobs", "refs") and (up.parent / "snapshots").is_dir() for up in above):
        return _CACHED
    name = file.name.lower()
    ending = Path(named).suffix
    is_named = glob.has_magic(named) and ending and not glob.has_magic(ending)
    if _is_one_of(name, _SIDE_FILES) and not (is_named and file.suffix == ending):
        return _BESIDE
    if _is_one_of(name, _UNFINISHED_FILES):
        return _UNFINISHED
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
