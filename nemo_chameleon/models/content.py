"""Digests of a checkpoint's weights, to recognise it by wherever it lies and whoever trained it.

The other files of a checkpoint say how long the training took, where it was written and in which
order. Equal training therefore gives equal weights in files that are not equal.
"""

from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from nemo_chameleon.models.pickles import read_metadata
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import digest, digest_of_files, digest_of_ranges

_OPTIMIZER = "optimizer."


def weights_digest(folder: Path) -> str | None:
    """Return a digest of the model's weights in a checkpoint; the optimizer does not count.

    Args:
        folder: the checkpoint's folder.

    Returns:
        The digest of names, shapes, types and a sample of the values of all weights; None if the
        folder does not hold a checkpoint of torch.distributed.checkpoint.

    Raises:
        UserError: the checkpoint would run code when it is read, or is damaged.
    """
    try:
        described = read_metadata(folder)
        tensors = {
            name: [list(tensor.size), str(tensor.properties.dtype)]
            for name, tensor in described.state_dict_metadata.items()
            if isinstance(tensor, TensorStorageMetadata) and not name.startswith(_OPTIMIZER)
        }
        parts: dict[Any, tuple[Path, int, int]] = {
            (index.fqn, tuple(index.offset or ())): (
                folder / place.relative_path,
                place.offset,
                place.length,
            )
            for index, place in described.storage_data.items()
            if index.fqn in tensors
        }
        samples = digest_of_ranges([parts[key] for key in sorted(parts)])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UserError:
        raise
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{folder} is damaged: {error}; copy the checkpoint again") from error
    places = [[name, list(offset)] for name, offset in sorted(parts)]
    return digest({"tensors": tensors, "parts": places, "samples": samples})


def files_digest(folder: Path) -> str:
    """Return a digest of all files of a checkpoint, as versions before 0.3 recorded it.

    Args:
        folder: the checkpoint's folder.

    Returns:
        The digest of names, sizes and samples of the files.
    """
    return digest(digest_of_files(folder))


def digests_of(folder: Path) -> list[str] | None:
    """Return the digests that may be recorded of a checkpoint.

    Args:
        folder: the checkpoint's folder.

    Returns:
        That of its weights if they can be read, and that of its files; None if there is no such
        folder.
    """
    if not folder.is_dir():
        return None
    try:
        weights = weights_digest(folder)
    except UserError:  # who loads the checkpoint says what is wrong with it
        weights = None
    return [files_digest(folder)] if weights is None else [weights, files_digest(folder)]
