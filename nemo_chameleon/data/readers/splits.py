"""Finds files of different splits in one folder, which must not be trained on together."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from nemo_chameleon.data.readers.formats import TEXT, DataFile
from nemo_chameleon.utils.errors import UserError

_SPLITS = {
    "train": "training",
    "training": "training",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
    "evaluation": "validation",
    "heldout": "validation",
    "holdout": "validation",
    "devtest": "test",
    "test": "test",
}
# What may follow the name of a split in the name of a file, apart from numbers.
_ENDINGS = set("of json jsonl ndjson txt tokens raw parquet arrow gz zst bz2 xz".split())


def require_one_split(files: Sequence[DataFile], root: Path, where: str) -> None:
    """Check that the files of a folder are not those of several splits.

    A text file is one document, such as src/test/speed_test.py: only dots divide its name into
    words, and of the folders only the topmost one counts.

    Args:
        files: the files that would be read.
        root: the folder.
        where: the key of the configuration and its value, or the folder; the error begins with it.

    Raises:
        UserError: the names are those of two or more splits.
    """
    found: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        if (split := _split_of(file.path.relative_to(root), file.format == TEXT)) is not None:
            found[split].append(file.path)
    if len(found) < 2:
        return
    names = ", ".join(str(paths[0].relative_to(root)) for _, paths in sorted(found.items()))
    every = [file.path for file in files]
    places = {split: _place(paths, every) for split, paths in found.items()}
    raise UserError(
        f"{where}: these are files of several splits, such as {names}; name one split: "
        f"{_remedy(places, where)}; a list of paths reads all of them"
    )


def _split_of(path: Path, of_text: bool) -> str | None:
    """Return the split that a file or a folder above it is named like, as in train-00000-of-00002.

    The name of the split is the first or the last word of a name.
    """
    for part in (path.parts[0], path.name) if of_text else path.parts:
        words = re.split(r"[.]" if of_text else r"[-_.]", part.lower())
        if words[0] in _SPLITS:
            return _SPLITS[words[0]]
        while words and (words[-1].isdigit() or words[-1] in _ENDINGS):
            words.pop()
        if words and words[-1] in _SPLITS:
            return _SPLITS[words[-1]]
    return None


def _place(paths: Sequence[Path], every: Sequence[Path]) -> Path | None:
    """Return the one file, or the folder that holds these files alone."""
    if len(paths) == 1:
        return paths[0]
    for folder in paths[0].parents:
        inside = [path for path in every if folder in path.parents]
        if len(inside) >= len(paths):
            return folder if len(inside) == len(paths) and set(inside) == set(paths) else None
    return None


def _remedy(places: dict[str, Path | None], where: str) -> str:
    key = where.partition("=")[0]
    named = {split: place for split, place in places.items() if place is not None}
    if len(named) < len(places):
        return "move the files of each split into a folder of its own, and name that"
    if not key.startswith("data.domains."):
        return " or ".join(
            f"{key}={place}" if key != where else str(place) for place in named.values()
        )
    name = key.removeprefix("data.domains.").removesuffix(".path")
    keys = {"training": key, "validation": f"data.validation.{name}.path"}
    # Without a file to train on, any of the others may be meant.
    keys = {split: keys[split] for split in keys if split in named} or dict.fromkeys(named, key)
    return " ".join(f"{key}={named[split]}" for split, key in keys.items())
