"""The file of domain embeddings beside a mixture file, in safetensors, keyed by domain name.

The tensors of proxy P (0, 1, ...) and domain NAME are "P/means/NAME", "P/tokens/NAME" and, in files
of version 0.2 and later, "P/heaviest/NAME" with the fields of `HeaviestTokens`.
"""

from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from nemo_chameleon.method.embeddings import Embeddings, HeaviestTokens, ShardedEmbedding
from nemo_chameleon.utils.arrays import Floats
from nemo_chameleon.utils.errors import UserError, reason_of
from nemo_chameleon.utils.files import write_atomically


def embeddings_file(mixture_file: str | Path) -> Path:
    """Return the path of a mixture's embeddings: beside the mixture file, ending in .safetensors.

    Args:
        mixture_file: path of the mixture file.

    Returns:
        The path, whether or not the file exists.
    """
    return Path(mixture_file).with_suffix(".safetensors")


def save_embeddings(path: Path, embeddings: Sequence[Embeddings]) -> None:
    """Write the embeddings of one proxy or several in one step.

    Args:
        path: the file.
        embeddings: by domain name, one mapping per proxy.

    Raises:
        UserError: the file cannot be written.
    """
    tensors: dict[str, Any] = {}
    for proxy, domains in enumerate(embeddings):
        for name, shards in domains.items():
            tensors[f"{proxy}/means/{name}"] = shards.means
            tensors[f"{proxy}/tokens/{name}"] = shards.tokens
            if shards.heaviest is not None:
                tensors[f"{proxy}/heaviest/{name}"] = np.array(astuple(shards.heaviest))
    try:
        write_atomically(path, save(tensors))
    except OSError as error:
        raise UserError(f"cannot write the embeddings {path}: {reason_of(error)}") from error


def load_embeddings(path: Path) -> list[dict[str, ShardedEmbedding]]:
    """Read the embeddings of one proxy or several.

    Args:
        path: the file.

    Returns:
        By domain name, one mapping per proxy.

    Raises:
        UserError: the file cannot be read, or is not a file of embeddings.
    """
    try:
        tensors: dict[str, Any] = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read the embeddings {path}: {error}") from error
    embeddings: dict[int, dict[str, ShardedEmbedding]] = {}
    try:
        for key, means in tensors.items():
            proxy, what, name = key.split("/", 2)
            if what == "means":
                tokens = tensors[f"{proxy}/tokens/{name}"]
                if means.ndim != 2 or tokens.shape != means.shape[:1] or not np.all(tokens > 0):
                    raise UserError(f"{path}: the embedding of domain {name!r} is damaged")
                heaviest = _heaviest(tensors.get(f"{proxy}/heaviest/{name}"))
                shards = ShardedEmbedding(means, tokens.astype(np.int64), heaviest)
                embeddings.setdefault(int(proxy), {})[name] = shards
        return [embeddings[proxy] for proxy in range(max(1, len(embeddings)))]
    except UserError:  # which is a ValueError
        raise
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{path} has no domain embeddings of this version: remove it and the mixture file to "
            "compute them again"
        ) from error


def _heaviest(stored: Floats | None) -> HeaviestTokens | None:
    if stored is None:
        return None
    share, norm, token, position = stored.tolist()
    return HeaviestTokens(share, norm, int(token), int(position))
