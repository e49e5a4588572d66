"""Megatron's sample indices in data.cache, in one folder for each training or validation set.

Megatron takes any file that has the right name for a finished index. It therefore builds in a
folder of its own, and loads from one that is whole (see `cached.py`).
"""

import contextlib
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import megatron.core
from megatron.core.datasets.gpt_dataset import GPTDatasetConfig

from nemo_chameleon.data import cached
from nemo_chameleon.data.domain import Domain
from nemo_chameleon.distributed.collectives import on_first_rank
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import digest, sampled_digest
from nemo_chameleon.utils.ranks import is_first_rank

T = TypeVar("T")

FOLDER = "indices"
"""The folder in data.cache that has them all."""
# Increase it when blend.py asks Megatron for other datasets from the same facts.
_VERSION = 1
_BLOCKS = 8  # of each .idx file


def with_indices(
    cache: str, facts: Callable[[], Any], build: Callable[[str, Callable[[], bool]], T]
) -> T:
    """Build datasets whose indices are verified; every rank must call it.

    The first rank verifies what is in the cache. If there is nothing whole, it builds the indices,
    and then every rank loads them.

    Args:
        cache: data.cache.
        facts: returns all that decides the indices, as JSON can hold it; the first rank calls it.
        build: builds the datasets, on every rank. Its arguments are Megatron's path_to_cache, and a
            function that returns whether a dataset is built on this rank.

    Returns:
        What `build` returned for a folder that is whole.

    Raises:
        UserError: the indices cannot be read or written.
    """

    def find() -> tuple[Path, Path | None]:
        folder = _folder(cache, facts())
        if cached.is_whole(folder):
            return folder, None
        with _named(folder):
            return folder, cached.begin(folder)

    def finish(beside: Path, folder: Path) -> None:
        with _named(folder):
            cached.finish(beside, folder)

    folder, beside = on_first_rank(find)
    if beside is not None:
        unfinished = beside
        try:
            with _named(folder):
                build(str(unfinished), is_first_rank)
            on_first_rank(lambda: finish(unfinished, folder))
        finally:
            if is_first_rank():
                shutil.rmtree(unfinished, ignore_errors=True)
    return build(str(folder), lambda: True)


@contextlib.contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Say in one line why indices cannot be written; Megatron wraps the error that says so."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        raise UserError(
            f"Megatron's indices cannot be made in {folder.parent}: {cause}; make space there, or "
            "set another data.cache"
        ) from error


def facts_of(
    kind: type, config: GPTDatasetConfig, domains: Collection[Domain], prefixes: Iterable[str] = ()
) -> list[Any]:
    """Return what decides the indices of Megatron's datasets over some domains.

    Args:
        kind: the class of Megatron's datasets.
        config: their configuration; its path_to_cache does not count.
        domains: the opened domains, in order.
        prefixes: those of the datasets, if they are not those of the domains' training splits.

    Returns:
        The facts, as JSON can hold them.
    """
    settings = {
        field.name: repr(getattr(config, field.name))
        for field in fields(config)
        if field.name not in ("path_to_cache", "tokenizer")
    }
    identity = [[domain.name, domain.fingerprint, [*domain.datasets.items()]] for domain in domains]
    prefixes = [*prefixes] or [prefix for domain in domains for prefix in domain.datasets]
    lengths = [[prefix, *_identity(Path(f"{prefix}.idx"))] for prefix in prefixes]
    return [kind.__name__, settings, config.tokenizer.unique_identifiers, identity, lengths]


def _identity(idx: Path) -> list[Any]:
    # A domain's fingerprint is of its tokens. Where its documents end also decides the indices.
    return [idx.stat().st_size, sampled_digest(idx, _BLOCKS)]


def found_folder(cache: str, facts: Any, make: Callable[[str], None] | None = None) -> Path | None:
    """Return the folder of some indices, if it is whole; this process may make it.

    Args:
        cache: data.cache.
        facts: all that decides the indices, as JSON can hold it.
        make: fills a folder; its argument is the folder's path. None if nothing is to be made.

    Returns:
        A folder that is whole; None if there is none and `make` is None.

    Raises:
        UserError: the indices cannot be read or written.
    """
    folder = _folder(cache, facts)
    if cached.is_whole(folder):
        return folder
    if make is None:
        return None
    with _named(folder):
        beside = cached.begin(folder)
        try:
            make(str(beside))
            cached.finish(beside, folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return folder


def _folder(cache: str, facts: Any) -> Path:
    key = digest([_VERSION, str(megatron.core.__version__), facts])
    return Path(cache) / FOLDER / key
