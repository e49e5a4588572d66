"""Tells which files of a folder hold no documents, and why, so that every file is accounted for."""

import fnmatch
import glob
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nemo_chameleon.data.split_names import ending_of
from nemo_chameleon.utils.errors import UserError

_HIDDEN = "hidden"
_NO_FILE = "pipes or devices"
_CACHED = "of a Hugging Face cache, beside its snapshots"
_UNFINISHED = "unfinished or backups"
_BESIDE = "side files"
_TOKENISED = "Megatron datasets"
_UNLISTED = "not listed in state.json"

_SIDE_FILES = (
    "readme readme.* license license[.-]* licence licence[.-]* copying copying.* notice notice.* "
    "*.md dataset_info.json dataset_infos.json "
    "dataset_dict.json state.json _success *.crc *.lock *.sha256 *.md5 sha256sums md5sums "
    "cache-*.arrow _started_* _committed_* _metadata _common_metadata thumbs.db desktop.ini "
    "*.idx.npy *.idx.info"
).split()
_UNFINISHED_FILES = "*~ #*# *.incomplete *.part *.partial *.crdownload *.download *.aria2".split()
_TOKENISED_FILES = "*.bin *.idx *.info.json *.unfinished.*".split()
_COMPRESSED = r"(\.(?:gz|zst|bz2|xz))?"
_OLD = r"(?:old|orig|bak|bkp|backup|save|saved|prev|tmp|temp|copy)"
_DATE_OR_NUMBER = r"[-_.]?\d[-_.\dt]*"
_BACKUP = re.compile(rf".*\.(?:{_OLD}(?:{_DATE_OR_NUMBER})?|sw[a-p]|rej){_COMPRESSED}")
# Names that are those of backups only beside the file that they were made of.
_NUMBERED = re.compile(rf"(.*\.[a-z]\w*)\.{_DATE_OR_NUMBER}{_COMPRESSED}", re.IGNORECASE)
_MARKED = re.compile(
    rf"(.*?)[-_ ](?:old|orig|bak|bkp|backup)(?:{_DATE_OR_NUMBER})?(\.\w+){_COMPRESSED}",
    re.IGNORECASE,
)
_SHOWN = 2  # files of one kind that a message names
_ENDINGS_SHOWN = 8
_TEMPORARY = "_temporary"  # where Spark writes what it has not committed yet
# Folders that only tables have whose other files may be of an older version.
_TABLES = {"_delta_log": "Delta", ".hoodie": "Hudi"}
_ICEBERG = ".metadata.json"


def why_left_out(
    file: Path, root: Path, named: str, listed: Callable[[Path], frozenset[str] | None]
) -> str | None:
    """Return why a file of a folder is not read.

    Args:
        file: the file.
        root: the folder, or the folders of a glob above its first part with `*`.
        named: the folder or the glob as the user gave it. A glob such as *.md names an ending, so
            that files with this ending are no side files.
        listed: `listed_files`, which a caller caches for as long as the folder does not change.

    Returns:
        The reason, in the plural; None if the file is read.

    Raises:
        UserError: it is a link to nothing, or of a table that has older versions beside the newest.
    """
    parts = file.relative_to(root).parts
    _require_no_table(file, parts)
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
    by_ending = is_named and file.suffix == ending
    if _is_one_of(name, _SIDE_FILES) and not by_ending:
        return _BESIDE
    if _TEMPORARY in parts or (_is_unfinished(file, name) and not by_ending):
        return _UNFINISHED
    if _is_one_of(name, _TOKENISED_FILES):
        return _TOKENISED
    if name.endswith(".arrow") and (names := listed(file.parent)) and file.name not in names:
        return _UNLISTED
    return None


def _is_one_of(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _is_unfinished(file: Path, name: str) -> bool:
    """Return whether a file is unfinished or a backup, by its name and what is beside it."""
    if _is_one_of(name, _UNFINISHED_FILES) or _BACKUP.fullmatch(name):
        return True
    for pattern in (_NUMBERED, _MARKED):
        if match := pattern.fullmatch(file.name):
            made_of = "".join(part or "" for part in match.groups())
            if (file.parent / made_of).is_file():
                return True
    return False


def listed_files(folder: Path) -> frozenset[str] | None:
    """Return the data files that `save_to_disk` of datasets has listed.

    Args:
        folder: the folder that it has written.

    Returns:
        The names of the files; None if there is no list that can be read.

    Raises:
        UserError: a file is listed and not there.
    """
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


def described(left_out: Mapping[str, Sequence[str]]) -> str:
    """Describe the files that are not read, in one line.

    Args:
        left_out: the names of the files, by the reason.

    Returns:
        For instance "2 side files (README.md, LICENSE)"; empty if there is none.
    """
    parts = []
    for reason, names in left_out.items():
        more = ", ..." if len(names) > _SHOWN else ""
        parts.append(f"{len(names):,} {reason} ({', '.join(names[:_SHOWN])}{more})")
    return ", ".join(parts)


def endings_of(files: Sequence[Path]) -> str:
    """Count files by the endings of their names, if these differ.

    Args:
        files: the files that are read.

    Returns:
        For instance ": 3 .txt, 1 .sh, 1 without an ending"; empty if all have one ending.
    """
    counts = Counter(ending_of(file) for file in files)
    if len(counts) < 2:
        return ""
    parts = [
        f"{count:,} {f'.{ending}' if ending else 'without an ending'}"
        for ending, count in counts.most_common(_ENDINGS_SHOWN)
    ]
    return f": {', '.join(parts)}{', ...' if len(counts) > _ENDINGS_SHOWN else ''}"


def _require_no_table(file: Path, parts: Sequence[str]) -> None:
    """Refuse a table of which a file list says which of its files count."""
    kind = next((_TABLES[part] for part in parts[:-1] if part in _TABLES), None)
    if file.name.endswith(_ICEBERG) and file.parent.name == "metadata":
        kind = "Iceberg"
    if kind is not None:
        raise UserError(
            f"{file} is of a table of {kind}, whose folder keeps files of older versions too: "
            "write the newest version to a folder of its own as parquet, and name that"
        )
