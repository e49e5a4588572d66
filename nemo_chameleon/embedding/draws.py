"""Finished draws of windows, which are kept in a folder until the mixture file is written.

The name of a draw's file is a digest of everything that the draw depends on, so that a restarted
run finds it there.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from nemo_chameleon.data.domain import Domain
from nemo_chameleon.embedding.reencoding import Reencoding
from nemo_chameleon.embedding.windows import Windows
from nemo_chameleon.method.embeddings import Embeddings, ShardedEmbedding
from nemo_chameleon.mixture.embeddings_file import load_embeddings, save_embeddings
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import digest


class KeptDraws:
    """The draws of one model in a folder; one rank reads and writes them for all."""

    def __init__(
        self, folder: Path, windows: Windows, model: str, reencoding: Reencoding | None = None
    ) -> None:
        """Describe the draws; nothing is read yet.

        Args:
            folder: where they are kept; it may not exist yet.
            windows: the layers, and the windows of each domain.
            model: a text that differs from that of any other model.
            reencoding: how the domains' tokens become the model's; None if they are the same.
        """
        self._folder, self._windows = folder, windows
        self._model, self._reencoding = model, reencoding
        self._used: set[Path] = set()

    def path(self, domain: Domain, samples: int, first: int) -> Path:
        """Return where a draw is kept.

        Args:
            domain: the domain.
            samples: number of its windows.
            first: index of the first window.

        Returns:
            The file, which may not exist.
        """
        follows_from = {
            **asdict(self._windows),
            "model": self._model,
            "domain": [domain.name, domain.fingerprint, domain.embeddable_tokens],
            "samples": [first, samples],
            "reencoding": self._reencoding and self._reencoding.identity,
        }
        return self._folder / f"{digest(follows_from)}.safetensors"

    def read(self, domain: Domain, samples: int, first: int = 0) -> list[ShardedEmbedding] | None:
        """Read a draw.

        Args:
            domain: the domain.
            samples: number of its windows.
            first: index of the first window.

        Returns:
            The embedding for each layer; None if the draw is missing or its file is damaged.
        """
        path = self.path(domain, samples, first)
        if not path.is_file():
            return None
        self._used.add(path)
        try:
            return [of_layer[domain.name] for of_layer in load_embeddings(path)]
        except (UserError, KeyError):  # a damaged file: the draw is made again and replaces it
            return None

    def write(
        self, domain: Domain, samples: int, first: int, embeddings: Sequence[Embeddings]
    ) -> None:
        """Keep a draw.

        Args:
            domain: the domain.
            samples: number of its windows.
            first: index of the first window.
            embeddings: by domain name, for each layer.
        """
        path = self.path(domain, samples, first)
        save_embeddings(path, embeddings)
        self._used.add(path)

    def all_of(
        self, domains: Mapping[str, Domain], samples: int
    ) -> dict[str, ShardedEmbedding] | None:
        """Read the first layer's draws of all domains.

        Args:
            domains: the domains, by name.
            samples: number of each one's windows, from the first on.

        Returns:
            The embeddings by domain name; None if a draw is missing.
        """
        found = {name: self.read(domain, samples) for name, domain in domains.items()}
        whole = {name: layers[0] for name, layers in found.items() if layers is not None}
        return whole if len(whole) == len(domains) else None

    def forget(self) -> None:
        """Remove the draws that were read or written, and the folder if it is empty then."""
        for path in self._used:
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the folder is missing, or holds other draws
            self._folder.rmdir()
