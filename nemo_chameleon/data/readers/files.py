"""Finds the files of a path, and accounts for every file: read, or not and why.

A path is a file, a folder with all that is below it, or a glob of files and folders.
"""

import fnmatch
import functools
import glob
import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from nemo_chameleon.data.given import Given
from nemo_chameleon.data.parts import fixed_folder, require_once
from nemo_chameleon.data.readers.formats import COMPRESSED, TEXT, DataFile, recognize
from nemo_chameleon.data.readers.left_out import described, endings_of, listed_files, why_left_out
from nemo_chameleon.data.shards import require_whole_sets
from nemo_chameleon.data.splits import require_one_split
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import sampled_digest
from nemo_chameleon.utils.logging import package_logger
from nemo_chameleon.utils.tables import printable

logger = package_logger(__package__)

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
    try:
        return _found(paths, key)
    except UserError as error:
        # The name of a file may have any character, and an error is one line.
        raise UserError(printable(str(error), kept="")) from error


def _found(paths: Sequence[str], key: str) -> list[Source]:
    found: list[Source] = []
    for path in paths:
        given = Given(path, key)
        if glob.has_magic(path) and not Path(path).exists():
            found += _of_glob(given)
        elif Path(path).is_dir():
            found += _accounted([Path(path)], Path(path), given)
        else:
            _require_there(given)
            found.append(Source(Path(path), [recognize(Path(path))]))
    files = [file.path for source in found for file in source.files]
    require_once([(_identity(file), str(file)) for file in files], key or "the files to read")
    return found


def _identity(file: Path) -> str:
    return "-" if str(file) == "-" else str(file.resolve())


def _of_glob(given: Given) -> list[Source]:
    pattern = given.path
    # A pathlib glob takes no absolute pattern.
    matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207
    if "**" in pattern:  # it matches the folders above its files too
        matches = [match for match in matches if not match.is_dir()]
    if not matches:
        raise UserError(f"{given}: the glob matches no file")
    return _accounted(matches, fixed_folder(pattern), given)


def _accounted(matches: list[Path], root: Path, given: Given) -> list[Source]:
    """Find what is read of files and folders under a root, and say what is not."""
    left_out = defaultdict[str, list[str]](list)
    listed = functools.cache(listed_files)
    sources: list[tuple[Path, list[Path]]] = []
    try:
        for match in matches:
            kept = []
            for file in sorted(_walk(match)) if match.is_dir() else [match]:
                if reason := why_left_out(file, root, given.path, listed):
                    left_out[reason].append(str(file.relative_to(root)))
                else:
                    kept.append(file)
            if kept:
                sources.append((match, kept))
    except OSError as error:
        raise UserError(f"{given}: cannot read the folder: {error}") from error
    said = described(left_out)
    if not sources:
        beside = f" (not read: {said})" if said else ""
        raise UserError(f"{given}: there is no file with data{beside}; name a file instead")
    try:
        found = [Source(match, [recognize(file) for file in kept]) for match, kept in sources]
    except UserError as error:
        raise UserError(f"{given}: {error}; if it is no data, move it out of the folder") from error
    files = [file for source in found for file in source.files]
    _require_one_revision(files, given)
    texts = frozenset(file.path for file in files if file.format == TEXT)
    require_one_split([file.path for file in files], root, given, texts=texts)
    _require_one_kind(files, root, given)
    _require_one_copy(files, given)
    _name_copies(files, given)
    folders = {match for match, _ in sources if match.is_dir()}
    asked = Path(given.path).name

    def is_matched(file: Path) -> bool:
        return not folders.isdisjoint(file.parents) or fnmatch.fnmatchcase(file.name, asked)

    require_whole_sets([file.path for file in files], given, is_matched)
    endings = endings_of([file.path for file in files])
    if said or endings:
        rest = f"; not read: {said}" if said else ""
        _say(f"{given}: {len(files):,} file(s) are read{endings}{rest}")
    return found


def _require_one_copy(files: Sequence[DataFile], given: Given) -> None:
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
                f"{given}: {known[plain].name} and {path.name} in {path.parent} have one name, as "
                "if they were the same documents twice: move one of them out of the folder, or "
                "name the files one by one to read both"
            )
        known[plain] = path


def _name_copies(files: Sequence[DataFile], given: Given) -> None:
    """Warn of files of records that are copies of each other."""
    alike: dict[int, list[Path]] = defaultdict(list)
    for file in files:
        if file.format != TEXT and (size := file.path.stat().st_size):
            alike[size].append(file.path)
    for paths in alike.values():
        known: dict[str, Path] = {}
        for path in paths if len(paths) > 1 else ():
            if (other := known.setdefault(sampled_digest(path), path)) != path:
                _say(
                    f"{given}: {path} looks like a copy of {other}, and the documents of both are "
                    "read: remove one of the two if it is",
                    logging.WARNING,
                )


def _require_one_revision(files: Sequence[DataFile], given: Given) -> None:
    """Refuse several revisions of one dataset, which a Hugging Face cache keeps side by side."""
    known: dict[Path, Path] = {}
    for file in files:
        for revision, above in zip(file.path.parents, file.path.parents[1:], strict=False):
            if above.name == "snapshots" and known.setdefault(above, revision) != revision:
                newest = above.parent / "refs" / "main"  # the name of the one that was asked for
                one = above / newest.read_text().strip() if newest.is_file() else revision
                raise UserError(
                    f"{given}: {above} has several revisions of one dataset: name one of them, "
                    f"such as {given.instead(str(one))}"
                )


def _require_one_kind(files: Sequence[DataFile], root: Path, given: Given) -> None:
    """Refuse plain text beside records: it is a script or a log more often than a document."""
    texts = [file.path for file in files if file.format == TEXT]
    records = [file.path for file in files if file.format != TEXT]
    if not texts or not records:
        return
    ending = "".join(records[0].suffixes[-2 if records[0].suffix in COMPRESSED else -1 :])
    below = "" if all(file.parent == root for file in records) else "**/"
    alike = root / f"{below}*{ending}" if ending else records[0]
    raise UserError(
        f"{given}: there are files of records, such as {records[0].relative_to(root)}, and files "
        f"that would be read as plain text, such as {texts[0].relative_to(root)}; name those of "
        f"one kind, such as {given.instead(str(alike))}, or several paths to read both"
    )


@functools.cache
def _say(message: str, level: int = logging.INFO) -> None:
    """Log a message once in a process, however often its folder is opened."""
    logger.log(level, "%s", message)


def _require_there(given: Given) -> None:
    place = Path(given.path)
    if str(place) == "-" or place.exists():
        return
    ending = next((end for end in _ENDINGS if Path(f"{place}{end}").is_file()), None)
    hint = f"; add the ending {ending}" if ending else ""
    raise UserError(f"{given}: there is no such file{hint}")


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
