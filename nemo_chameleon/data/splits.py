"""Finds files of different splits in one folder or glob, which must not be trained on together."""

import fnmatch
import glob
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import dropwhile, takewhile
from pathlib import Path

from nemo_chameleon.data.given import Given
from nemo_chameleon.utils.errors import UserError

_SPLITS = {
    "train": "training",
    "training": "training",
    "trn": "training",
    "validation": "validation",
    "validate": "validation",
    "validated": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
    "evaluate": "validation",
    "evaluation": "validation",
    "heldout": "validation",
    "holdout": "validation",
    "devtest": "test",
    "test": "test",
    "testing": "test",
    "tst": "test",
}
# What may follow the name of a split in the name of a file, apart from numbers and versions. The
# last three are of Megatron's preprocess_data.py, as in wiki_train_text_document.
_ENDINGS = set("of v json jsonl ndjson txt tokens raw parquet arrow gz zst bz2 xz".split())
_ENDINGS |= {"text", "document", "sentence"}
_BORDERS = re.compile(
    r"[\W_]+|(?<=\d)(?=[^\W\d_])|(?<=[^\W\d_])(?=\d)|(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])"
)
_KINDS = re.compile(r"(?:data|sets?|splits?|files?)+$")  # as in testset and split=test
_HELD_OUT = re.compile(r"(h[eo]ld)[-_. ]?(out)", re.IGNORECASE)


def require_one_split(
    files: Sequence[Path],
    root: Path,
    given: Given,
    *,
    texts: frozenset[Path] = frozenset(),
    datasets: bool = False,
) -> None:
    """Check that the files of a folder or a glob are not those of several splits.

    Files that are named like no split count as training files beside those of a held-out split.
    A text file is one document, such as src/test/speed_test.py: only dots divide its name into
    words, and of the folders only the topmost one counts. Of all other names each word counts that
    ends where the letters end, or in camel case, as in split=test, test1 and TestData.

    Args:
        files: the files that would be read, or the prefixes of Megatron datasets.
        root: the folder, or the folders of a glob above its first part with `*`.
        given: the folder or the glob; the error begins with it.
        texts: those of the files that are plain text.
        datasets: whether they are prefixes of datasets, which a folder cannot name.

    Raises:
        UserError: the names are those of two or more splits.
    """
    found = _by_split(files, root, texts)
    named = {path for paths in found.values() for path in paths}
    unnamed = [path for path in files if path not in named and path not in texts]
    if unnamed and found and "training" not in found:  # they are what one trains on
        found["training"] = unnamed
    if len(found) < 2:
        return
    names = ", ".join(str(paths[0].relative_to(root)) for _, paths in sorted(found.items()))
    places = {split: _place(paths, files, datasets) for split, paths in found.items()}
    raise UserError(
        f"{given}: these are {'datasets' if datasets else 'files'} of several splits, such as "
        f"{names}; name one split: {_remedy(places, given)}; a list of paths reads all of them"
    )


def _by_split(files: Sequence[Path], root: Path, texts: frozenset[Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = defaultdict(list)
    alike: dict[tuple[object, ...], dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for file in files:
        if (split := _split_of(file.relative_to(root), file in texts)) is not None:
            found[split].append(file)
        elif file not in texts:
            # A split in the middle of a name counts where another file differs in it alone.
            words = ["#" if word.isdigit() else word for word in _words(file.name)]
            for i, word in enumerate(words):
                if split := _split_named(word):
                    rest = (file.parent, *words[:i], None, *words[i + 1 :])
                    alike[rest][split].append(file)
    for splits in alike.values():
        if len(splits) > 1:
            for split, paths in splits.items():
                found[split] += [path for path in paths if path not in found[split]]
    return found


def _words(name: str) -> list[str]:
    """Divide a name into words of letters and numbers, without those that mean files at all."""
    words = _BORDERS.split(_HELD_OUT.sub(r"\1\2", name))
    return [lower for word in words if _KINDS.sub("", lower := word.lower())]


def _split_named(word: str) -> str | None:
    """Return the split that a word names, as test, tests and testset do."""
    stem = _KINDS.sub("", word)
    return _SPLITS.get(stem) or _SPLITS.get(stem.removesuffix("s"))


def _split_of(path: Path, of_text: bool) -> str | None:
    """Return the split that a file or a folder above it is named like, as in train-00000-of-00002.

    The name of the split is the first or the last word of a name, apart from numbers.
    """
    if of_text:
        parts = (path.parts[0], path.name)
        found = (_split_of_words(_words_of_text(part), _SPLITS.get) for part in parts)
    else:
        found = (_split_of_words(_words(part), _split_named) for part in path.parts)
    return next(filter(None, found), None)


def _words_of_text(name: str) -> list[str]:
    """Divide the name of a document, or of a folder of documents, at its dots alone."""
    words = re.split("[.=]", name.lower())
    return [word if word.isdigit() else re.sub(r"(?:set)?\d*$", "", word) for word in words]


def _split_of_words(words: list[str], named: Callable[[str], str | None]) -> str | None:
    words = list(dropwhile(str.isdigit, words))
    if words and (split := named(words[0])):
        return split
    while words and (words[-1].isdigit() or words[-1] in _ENDINGS):
        words.pop()
    return named(words[-1]) if words else None


def _place(paths: Sequence[Path], every: Sequence[Path], datasets: bool) -> str | None:
    """Return a path that names these files alone: the one file, its folder or a glob."""
    if len(paths) == 1:
        return str(paths[0])
    for folder in paths[0].parents:
        inside = [path for path in every if folder in path.parents]
        if len(inside) < len(paths):
            continue
        if set(inside) == set(paths):
            flat = all(path.parent == folder for path in paths)
            every_one = f"{glob.escape(str(folder))}/{'*' if flat else '**/*'}"
            return every_one if datasets else str(folder)
        break
    folder = paths[0].parent
    names = [path.name for path in paths]
    first = _common_start(names).rstrip("0123456789")
    last = _common_start([name[len(first) :][::-1] for name in names])[::-1]
    pattern = f"{glob.escape(first)}*{glob.escape(last)}"
    matched = {p for p in every if p.parent == folder and fnmatch.fnmatchcase(p.name, pattern)}
    return f"{glob.escape(str(folder))}/{pattern}" if matched == set(paths) else None


def _common_start(names: Sequence[str]) -> str:
    columns = zip(*names, strict=False)
    return "".join(column[0] for column in takewhile(lambda column: len({*column}) == 1, columns))


def _remedy(places: dict[str, str | None], given: Given) -> str:
    named = {split: place for split, place in places.items() if place is not None}
    if len(named) < len(places):
        return "move the files of each split into a folder of its own, and name that"
    if not given.key.startswith("data.domains."):
        return " or ".join(given.instead(place) for place in named.values())
    name = given.key.removeprefix("data.domains.").removesuffix(".path")
    keys = {"training": given.key, "validation": f"data.validation.{name}.path"}
    # Without a file to train on, any of the others may be meant.
    keys = {split: keys[split] for split in keys if split in named}
    keys = keys or dict.fromkeys(named, given.key)
    return " ".join(Given("", key).instead(named[split]) for split, key in keys.items())
