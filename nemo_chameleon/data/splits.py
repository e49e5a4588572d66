"""Finds files of different splits in one folder or glob, which must not be trained on together."""

import fnmatch
import glob
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path

from nemo_chameleon.data.given import Given
from nemo_chameleon.data.split_names import alike_but_for_split, prose_of, split_of
from nemo_chameleon.utils.errors import UserError

_LISTED = 4  # paths of one split that a message names one by one


def require_one_split(
    files: Sequence[Path],
    root: Path,
    given: Given,
    *,
    texts: frozenset[Path] = frozenset(),
    datasets: bool = False,
) -> None:
    """Check that the files of a folder or a glob are not those of several splits.

    Files that are named like no split count as training files beside those of a held-out split. A
    name says a split with its first or last word, or with the one word in which it differs from
    another. Of a file of prose, which is one document, such as speed_test.txt, the first or last
    word counts only where another name says a split. Source code, such as test.py, never says one.

    Args:
        files: the files that would be read, or the prefixes of Megatron datasets.
        root: the folder, or the folders of a glob above its first part with `*`.
        given: the folder or the glob; the error begins with it.
        texts: those of the files that are plain text.
        datasets: whether they are prefixes of datasets, which a folder cannot name.

    Raises:
        UserError: the names are those of two or more splits.
    """
    prose = prose_of(texts)
    named = {file: file.relative_to(root) for file in files if file not in texts or file in prose}
    if 2 * len(prose) < len(texts):
        found = _beside_code(named)
    elif len(prose) < len(texts):  # tests/notes.txt says nothing where there is code to test
        found = _by_split({file: Path(path.name) for file, path in named.items()}, prose)
        found = found if len(found) > 1 else _beside_code(named)
    else:
        found = _by_split(named, prose)
    if len(found) < 2:
        return
    names = ", ".join(str(paths[0].relative_to(root)) for _, paths in sorted(found.items()))
    raise UserError(
        f"{given}: these are {'datasets' if datasets else 'files'} of several splits, such as "
        f"{names}; {_remedy(found, files, root, given, datasets)}"
    )


_Splits = dict[str, list[Path]]


def _by_split(named: Mapping[Path, Path], prose: set[Path]) -> _Splits:
    """Divide files by the splits that their paths below the root say, by themselves or together."""
    found: _Splits = defaultdict(list)
    for file, path in named.items():
        if split := split_of(path, whole=file in prose):
            found[split].append(file)
    _add(found, _alike({file: named[file] for file in _others(named, found)}))
    if found:
        for file in _others(named, found):
            if split := split_of(named[file], whole=False):
                found[split].append(file)
        if "training" not in found and (unnamed := _others(named, found)):
            found["training"] = unnamed  # they are what one trains on
    return found


def _beside_code(named: Mapping[Path, Path]) -> _Splits:
    """Find splits among the prose of a repository, where test.txt says none by itself."""
    found = _alike(named)
    return found if "training" in found else {}


def _alike(named: Mapping[Path, Path]) -> _Splits:
    """Find the files whose names, or those of folders above them, differ in a split alone."""
    alike: dict[tuple[object, ...], _Splits] = defaultdict(lambda: defaultdict(list))
    for file, path in named.items():
        for around, split in alike_but_for_split(path):
            alike[around][split].append(file)
    found: _Splits = defaultdict(list)
    for splits in alike.values():
        if len(splits) > 1:
            _add(found, splits)
    return found


def _add(found: _Splits, more: _Splits) -> None:
    known = {path for paths in found.values() for path in paths}
    for split, paths in more.items():
        if new := [path for path in paths if path not in known]:
            found[split] += new
            known.update(new)


def _others(files: Iterable[Path], found: _Splits) -> list[Path]:
    named = {path for paths in found.values() for path in paths}
    return [file for file in files if file not in named]


def _places(paths: Sequence[Path], every: Sequence[Path], root: Path, datasets: bool) -> list[str]:
    """Return paths that name these files alone: one of all, or a few; none if it takes many."""
    if len(paths) == 1:
        return [str(paths[0])]
    folders = _folders(set(paths), every, root)
    if len(folders) == 1:
        ((folder, alone),) = folders.items()
        if alone:
            flat = all(path.parent == folder for path in paths)
            every_one = f"{glob.escape(str(folder))}/{'*' if flat else '**/*'}"
            return [every_one if datasets else str(folder)]
    if len({path.parent for path in paths}) == 1 and (pattern := _pattern(paths, every)):
        return [pattern]
    if len(folders) > _LISTED:
        return []
    if datasets:
        return [str(path) for path in paths] if len(paths) <= _LISTED else []
    return [str(path) for path in folders]


def _folders(paths: set[Path], every: Sequence[Path], root: Path) -> dict[Path, bool]:
    """Return the topmost folders that hold these files alone, and the files beside others.

    The value is whether it is a folder.
    """
    beside = {path.parent for path in every if path not in paths}
    mixed = {above for folder in beside for above in (folder, *folder.parents)}
    top: dict[Path, Path | None] = {}
    for folder in {path.parent for path in paths}:
        above = [folder, *folder.parents][: len(folder.relative_to(root).parts) + 1]
        top[folder] = next((one for one in reversed(above) if one not in mixed), None)
    alone = {path: top[path.parent] for path in sorted(paths)}
    return {folder or path: folder is not None for path, folder in alone.items()}


def _pattern(paths: Sequence[Path], every: Sequence[Path]) -> str | None:
    folder, names = paths[0].parent, [path.name for path in paths]
    first = _common_start(names).rstrip("0123456789")
    last = _common_start([name[len(first) :][::-1] for name in names])[::-1]
    pattern = f"{glob.escape(first)}*{glob.escape(last)}"
    matched = {p for p in every if p.parent == folder and fnmatch.fnmatchcase(p.name, pattern)}
    return f"{glob.escape(str(folder))}/{pattern}" if matched == set(paths) else None


def _common_start(names: Sequence[str]) -> str:
    columns = zip(*names, strict=False)
    return "".join(column[0] for column in takewhile(lambda column: len({*column}) == 1, columns))


def _remedy(found: _Splits, every: Sequence[Path], root: Path, given: Given, datasets: bool) -> str:
    places = {split: _places(paths, every, root, datasets) for split, paths in found.items()}
    held_out = {split: place for split, place in places.items() if split != "training"}
    if all(places.values()):
        both = given.instead(*[place for named in places.values() for place in named])
        return (
            f"name one split: {_one_split(places, given)}; a list of paths reads all of them: "
            f"{both}"
        )
    movable = all(named and not any(map(glob.has_magic, named)) for named in held_out.values())
    if datasets or glob.has_magic(given.path) or not root.name or not movable:
        return "move the files of each split into a folder of its own, and name that"
    moved, commands = [], []
    for split, named in held_out.items():
        folder = root.with_name(f"{root.name}-{split}")
        moved.append(str(folder))
        commands.append(f"mkdir -p {shlex.quote(str(folder))}")
        commands.append(f"mv -n {shlex.join([*named, str(folder)])}")
    return (
        f"move what is held out: {' && '.join(commands)}; or then name "
        f"{given.instead(str(root), *moved)} to read all"
    )


def _one_split(places: dict[str, list[str]], given: Given) -> str:
    if not given.key.startswith("data.domains."):
        return " or ".join(given.instead(*place) for place in places.values())
    name = given.key.removeprefix("data.domains.").removesuffix(".path")
    keys = {"training": given.key, "validation": f"data.validation.{name}.path"}
    # Without a file to train on, any of the others may be meant.
    keys = {split: keys[split] for split in keys if split in places}
    keys = keys or dict.fromkeys(places, given.key)
    return " ".join(Given("", key).instead(*places[split]) for split, key in keys.items())
