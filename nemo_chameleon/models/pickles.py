"""Refuses a checkpoint whose pickles would run code.

torch.distributed.checkpoint describes a checkpoint by a pickle, and to read a pickle of a stranger
is to run the stranger's program. Only the classes that torch and Megatron write there are admitted.
"""

import contextlib
import dataclasses
import enum
import importlib
import io
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.distributed.checkpoint.api import CheckpointException

from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.names import fault_of_name

METADATA = ".metadata"
"""The name of the pickle that describes a checkpoint's tensors."""
COMMON = "common.pt"
"""The name of the file with a checkpoint's other values."""
# Of these modules, the data classes and enumerations are admitted, which hold values only.
_PLAIN = {
    "torch.distributed.checkpoint.filesystem",
    "torch.distributed.checkpoint.metadata",
    "torch.distributed.checkpoint.planner",
}
_ADMITTED = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("builtins", "set"),
    ("builtins", "frozenset"),
    # Megatron wrote these two until 0.15, as data classes. Later ones have empty classes there.
    ("megatron.core.dist_checkpointing.strategies.torch", "MCoreMetadata"),
    ("megatron.core.dist_checkpointing.strategies.torch", "MCoreSavePlan"),
}
# Of the admitted classes, these and the data classes have attributes of their own in each object.
_OWN = {admitted for admitted in _ADMITTED if admitted[0].startswith("megatron.")}
_CONSTANTS = (torch.dtype, torch.layout, torch.memory_format)
_NOT_DAMAGE = (OSError, MemoryError, ImportError)  # what they say is true of this machine
_SWITCHES = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")

# Transformer Engine's extra states. Megatron admits these and its own classes since 0.16.
torch.serialization.add_safe_globals([io.BytesIO])


class _RefusedError(Exception):
    """Raised for a name that is not admitted."""


class _Unpickler(pickle._Unpickler):  # the one in C cannot be told how to set attributes
    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch}
    _build: ClassVar[Any] = dispatch[pickle.BUILD[0]]

    def load_build(self) -> None:
        """Set the attributes of an object, which must be none that other code shares."""
        target = vars(self)["stack"][-2]
        kind = type(target)
        if not dataclasses.is_dataclass(kind) and (kind.__module__, kind.__name__) not in _OWN:
            raise _RefusedError(f"setattr on {target!r:.80}")
        self._build()

    dispatch[pickle.BUILD[0]] = load_build

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle names, if it is admitted."""
        module = "pathlib" if module == "pathlib._local" else module  # as Python 3.13 calls it
        if module == "torch" and isinstance(value := getattr(torch, name, None), _CONSTANTS):
            return value
        if module in _PLAIN | {admitted for admitted, _ in _ADMITTED} and "." not in name:
            value = getattr(importlib.import_module(module), name, None)
            plain = isinstance(value, type) and (
                dataclasses.is_dataclass(value) or issubclass(value, enum.Enum)
            )
            if (module, name) in _ADMITTED or (module in _PLAIN and plain):
                if value is None:
                    raise ImportError(f"{module} has no {name} in the version that is installed")
                return value
        raise _RefusedError(repr(f"{module}.{name}")[1:-1])


def read_metadata(folder: Path) -> Any:
    """Read the description of a checkpoint's tensors, and run nothing that it names.

    Args:
        folder: the checkpoint's folder.

    Returns:
        A `torch.distributed.checkpoint.metadata.Metadata`.

    Raises:
        UserError: the pickle names something that torch and Megatron do not write there.
        ValueError: the pickle is damaged.
        OSError: it cannot be read.
        ImportError: it names a class that the installed version of torch or Megatron lacks.
        MemoryError: there is no memory to read it.
    """
    with (folder / METADATA).open("rb") as stream:
        try:
            described = _Unpickler(stream).load()
            names = {str(place.relative_path) for place in described.storage_data.values()}
        except _RefusedError as error:
            raise UserError(_would_run(folder / METADATA, str(error))) from error
        except _NOT_DAMAGE:
            raise
        except Exception as error:  # a damaged pickle can raise anything
            # The text of an error may hold what was read, which may be nested without end.
            raise ValueError(f"{METADATA} is damaged: {type(error).__name__}") from error
    for name in names:
        if (fault := fault_of_name(name)) is not None:
            raise ValueError(f"{METADATA} is damaged: the name {name!r} of a file {fault}")
    return described


def require_harmless(folder: Path) -> None:
    """Check that a checkpoint's values other than tensors run nothing when they are read.

    Args:
        folder: the checkpoint's folder.

    Raises:
        UserError: they name something that Megatron does not write there.
        ValueError: their file is damaged.
        OSError: it cannot be read.
        MemoryError: there is no memory to read it.
    """
    file = folder / COMMON
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except _NOT_DAMAGE:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"{COMMON} is damaged: {error!r}") from error
    if named:
        raise UserError(_would_run(file, named[0]))


def _would_run(file: Path, what: str) -> str:
    return (
        f"{file} is not read, because it would run {what}: no checkpoint of torch or "
        "Megatron names it, so somebody may have changed the file; take the checkpoint from a "
        "source that you trust"
    )


@contextlib.contextmanager
def weights_only(folder: Path) -> Iterator[None]:
    """Let torch.load read tensors and plain values only within the block, whoever calls it.

    Args:
        folder: the folder of the checkpoint that is read.

    Yields:
        Nothing.

    Raises:
        UserError: an object beside the tensors is another one.
        CheckpointException: the checkpoint cannot be read for another reason.
    """
    before = {name: os.environ.pop(name, None) for name in _SWITCHES}
    os.environ[_SWITCHES[0]] = "1"
    try:
        yield
    except CheckpointException as error:
        if any(isinstance(cause, pickle.UnpicklingError) for cause, _ in error.failures.values()):
            raise UserError(
                f"{folder} is not read, because an object beside its tensors is damaged or would "
                "run code: rename the folder to go on from the checkpoint before it, or take a "
                "checkpoint from a source that you trust"
            ) from error
        raise
    finally:
        del os.environ[_SWITCHES[0]]
        os.environ.update({name: value for name, value in before.items() if value is not None})
