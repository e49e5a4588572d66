"""Tries every place that a run will write to, before anything is trained.

Without this a run could end after days because of a file that is in the way of its result.
"""

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from nemo_chameleon.config.keys import typed
from nemo_chameleon.config.schema import Config
from nemo_chameleon.mixture.embeddings_file import embeddings_file
from nemo_chameleon.models import tracker
from nemo_chameleon.models.gpt import parameter_count
from nemo_chameleon.provider.trained import kept_draws
from nemo_chameleon.train.result import RESULT
from nemo_chameleon.train.run import TrainingRun
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import TEMPORARY, require_writable

_LONGEST = 255  # bytes of a name, on all file systems that clusters have
# A checkpoint has at least the weights and two moments of each in fp32.
_BYTES_PER_PARAMETER = 12


def require_mixture_file(config: Config, *, trial: bool) -> None:
    """Refuse a chameleon.file that could not be written after hours of training a proxy.

    Args:
        config: the whole configuration.
        trial: whether to write files there, which only the machine of the job can do.

    Raises:
        UserError: the mixture file or what lies beside it cannot be written.
    """
    file = Path(config.chameleon.file)
    remedy = f"set {typed(('chameleon', 'file'), 'FILE.json')} to a file that can be written"
    draws = kept_draws(config)
    files = (file, embeddings_file(file), draws / "draw.safetensors")
    for path, fault in _faults(files, [draws]):
        raise UserError(f"chameleon.file={file}: {path} {fault}; {remedy}")
    if trial:
        try:
            for path in files:
                require_writable(path)
        except OSError as error:
            raise UserError(
                f"chameleon.file={file} cannot be written: {error}; {remedy}"
            ) from error
        finally:
            with contextlib.suppress(OSError):  # it holds draws
                draws.rmdir()


def require_folders(config: Config, runs: Iterable[TrainingRun], *, trial: bool) -> None:
    """Refuse folders that training runs could not write their files to.

    Args:
        config: the whole configuration.
        runs: the runs that will train.
        trial: whether to write files there, which only the machine of the job can do.

    Raises:
        UserError: something is in the way, may not be written to, or has no room for a checkpoint;
            the error names the key.
    """
    cache = Path(config.data.cache)
    for path, fault in _faults([], [cache]):
        raise UserError(f"data.cache={cache}: {path} {fault}; set data.cache to another folder")
    if trial:
        _try("data.cache", cache, cache / "index")
    for run in runs:
        files = [run.directory / name for name in (RESULT, "mixture.json", tracker.TRACKER)]
        folders = [run.directory]
        if config.logging.tensorboard:
            folders.append(run.directory / "tensorboard")
        for path, fault in _faults(files, folders):
            raise UserError(
                f"output={config.output}: {path} {fault}; remove it, or set output to another "
                "folder"
            )
        if trial:
            for path in (*files[:1], *(folder / "file" for folder in folders[1:])):
                _try("output", Path(config.output), path)
        _require_room(run)


def _faults(files: Iterable[Path], folders: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """Find what is in the way of files and folders, as far as one sees without writing."""
    for path in files:
        if path.is_dir():
            yield path, "is a folder"
        if len(os.fsencode(path.name)) + TEMPORARY > _LONGEST:
            yield path, f"has a name of more than {_LONGEST - TEMPORARY} bytes"
        folders = [*folders, path.parent]
    for folder in folders:
        if len(os.fsencode(folder.name)) > _LONGEST:
            yield folder, f"has a name of more than {_LONGEST} bytes"
            continue
        there = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), None)
        if there is None:
            continue
        if not there.is_dir():
            what = "is a link to nothing" if there.is_symlink() else "is a file"
            yield there, f"{what}, but must be a folder"
        elif there == folder and not os.access(folder, os.W_OK | os.X_OK):
            yield folder, "may not be written to"


def _try(key: str, folder: Path, path: Path) -> None:
    try:
        require_writable(path)
    except OSError as error:
        raise UserError(
            f"{key}={folder} cannot be written to: {error}; set {key} to another folder"
        ) from error


def _require_room(run: TrainingRun) -> None:
    """Refuse a disk without room for one checkpoint, unless the run has its last one."""
    if not run.directory.is_dir():
        there = next((path for path in run.directory.parents if path.is_dir()), None)
    else:
        there = run.directory
        saved = tracker.saved(there)
        if saved and tracker.iteration_of(saved[0]) >= run.settings.train.train_iters:
            return
    if there is None or not Path(run.config.output).is_dir():
        return
    # What killed saves have left is removed before the run saves for the first time.
    left = sum(map(_size, tracker.unfinished(run.directory)))
    needed = _BYTES_PER_PARAMETER * parameter_count(run.settings.model, run.vocab_size)
    if (free := shutil.disk_usage(there).free + left) < needed:
        raise UserError(
            f"output={run.config.output}: the disk has {free / 1e9:.1f} GB left, but a checkpoint "
            f"of {run.name} has at least {needed / 1e9:.1f} GB: make room, or set output to "
            "another folder"
        )


def _size(folder: Path) -> int:
    with contextlib.suppress(OSError):  # another job removes it
        return sum(path.lstat().st_size for path in folder.iterdir())
    return 0
