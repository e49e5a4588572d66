"""Finds what is missing of a numbered set of files, such as train-00001-of-00003.parquet."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from nemo_chameleon.data.given import Given
from nemo_chameleon.utils.errors import UserError

_NUMBERED = re.compile(r"(.*\D|)(\d+)([-_]of[-_])(\d+)(\D.*|)", re.DOTALL)
_LISTED = 4  # files that a message names one by one


def require_whole_sets(
    files: Sequence[Path], given: Given, belongs: Callable[[Path], bool] = lambda path: True
) -> None:
    """Check that of each numbered set all files are there, and no other numbering of the set.

    Args:
        files: the files of folders and globs, or the prefixes of Megatron datasets.
        given: the path of the folder or the glob; errors begin with it.
        belongs: whether a file would be read if it were there; a glob may ask for a part of a set.

    Raises:
        UserError: a file of a set is missing, or a folder has two numberings of one set, which are
            the same documents twice.
    """
    sets: dict[tuple[Path, str, str, str], dict[int, dict[int, Path]]] = defaultdict(dict)
    for file in files:
        if match := _NUMBERED.fullmatch(file.name):
            before, number, of, total, after = match.groups()
            numbering = sets[file.parent, before, of, after].setdefault(int(total), {})
            numbering[int(number)] = file
    for (folder, before, of, after), numberings in sets.items():
        if len(numberings) > 1:
            one, other = (min(found.values()) for found in list(numberings.values())[:2])
            raise UserError(
                f"{given}: {one.name} and {other.name} are of two numberings of one set, which "
                "would be the same documents twice: remove the files of one of the two, or name "
                f"the files of one: {_remedy([one], given)}"
            )
        ((total, found),) = numberings.items()
        first = 0 if 0 in found or total not in found else 1
        written = [_NUMBERED.fullmatch(file.name) for file in found.values()]
        digits = min(len(match[2]) for match in written if match)
        last = next(match[4] for match in written if match)
        absent = (
            folder / f"{before}{number:0{digits}}{of}{last}{after}"
            for number in range(first, first + total)
            if number not in found
        )
        if missing := list(islice(filter(belongs, absent), 2)):
            others = " and others are" if len(missing) > 1 else " is"
            raise UserError(
                f"{given}: {missing[0]}{others} missing of a set of {total:,} files, of which "
                f"{len(found):,} are there: copy what is missing, or name each file that is there "
                f"to do without: {_remedy(list(found.values()), given)}"
            )


def _remedy(files: Sequence[Path], given: Given) -> str:
    names = [str(file) for file in files[:_LISTED]] + ["..."] * (len(files) > _LISTED)
    return given.instead(*names)
