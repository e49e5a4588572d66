"""Refuses paths that are none, or that only a shell would read as they are meant."""

import os
import re
from pathlib import Path

from nemo_chameleon.config.keys import dotted
from nemo_chameleon.config.schema import Config
from nemo_chameleon.utils.errors import UserError

_VARIABLE = re.compile(r"(?<![^/])\$([A-Za-z_][A-Za-z0-9_]*)")


def require_places(config: Config) -> None:
    """Check that each path of a configuration is one, without the ~ or $NAME of a shell.

    Args:
        config: the whole configuration.

    Raises:
        UserError: a path is empty, or has a NUL character or one of them; the error names the key
            and what to write.
    """
    data, proxy = config.data, config.proxy
    places = [
        ("output", config.output),
        ("data.mixture", data.mixture),
        ("chameleon.file", config.chameleon.file),
        ("checkpoint.pretrained_checkpoint", config.checkpoint.pretrained_checkpoint),
        ("proxy.load", proxy.load),
        ("proxy.hf", proxy.hf),
        ("proxy.tokenizer", proxy.tokenizer),
        ("data.tokenizer", data.tokenizer),
        ("data.chat_template", data.chat_template),
        ("data.cache", data.cache),
    ]
    for section, entries in (("domains", data.domains), ("validation", data.validation)):
        for name, entry in entries.items():
            parts = entry.path if isinstance(entry.path, list) else [entry.path]
            places += [(dotted(("data", section, name, "path")), part) for part in parts]
    places += [(f"data.stages[{at}].mixture", own.mixture) for at, own in enumerate(data.stages)]
    for key, place in places:
        if place is None:
            continue
        if not place or "\0" in place:
            what = "has a NUL character, as no path has" if place else "is empty"
            raise UserError(f"{key}={place!r} {what}: name a place, such as . for this folder")
        require_no_tilde(place, f"{key}={place}")
        if (variable := _VARIABLE.search(place)) and not _exists(place):
            said = _VARIABLE.sub(r"${oc.env:\1}", place)
            raise UserError(f"{key}={place}: only a shell replaces {variable[0]}: write {said}")


def require_name(place: str, where: str, example: str) -> None:
    """Check that what is to be written has a name, and is not a folder.

    Args:
        place: the path to write.
        where: what gives the path; the error begins with it.
        example: a name for the error to show.

    Raises:
        UserError: it is a folder or empty, or begins with the ~ of a home folder.
    """
    if Path(place).name in ("", "..") or place.endswith(os.sep) or Path(place).is_dir():
        what = "is a folder" if place else "is empty"
        raise UserError(
            f"{where} {place or repr(place)} {what}: name a file in it, for instance "
            f"{Path(place) / example}"
        )
    require_no_tilde(place, f"{where} {place}")


def require_no_tilde(place: str, where: str) -> None:
    """Check that a path does not begin with the ~ of a home folder, which only a shell replaces.

    Args:
        place: the path.
        where: what gives the path; the error begins with it.

    Raises:
        UserError: it does; the error says what to write.
    """
    if (whole := os.path.expanduser(place)) != place:  # noqa: PTH111  # ~name may be no user
        raise UserError(f"{where}: ~ is no folder here: write {whole}")


def _exists(path: str) -> bool:
    return any(Path(path + ending).exists() for ending in ("", ".idx"))
