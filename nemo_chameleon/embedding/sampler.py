"""Which windows are embedded, and how many; what is done is kept, so that it is done once.

Every finished draw of a domain is saved beside the mixture file at once, under a name that all of
it follows from. A run that was killed finds it there; the mixture file, once written, replaces it.
"""

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nemo_chameleon.data.domain import Domain
from nemo_chameleon.distributed.collectives import on_first_rank
from nemo_chameleon.distributed.device import current_device
from nemo_chameleon.embedding.hooks import Extractor
from nemo_chameleon.embedding.pooling import embed
from nemo_chameleon.method.embeddings import SHARDS, ShardedEmbedding
from nemo_chameleon.mixture.embeddings_file import load_embeddings, save_embeddings
from nemo_chameleon.utils.console import progress_bar
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import digest
from nemo_chameleon.utils.logging import package_logger
from nemo_chameleon.utils.ranks import is_first_rank

logger = package_logger(__package__)

# Windows a domain that drawing until the weights are known begins with.
_FIRST_SAMPLES = 512


@dataclass(frozen=True)
class Windows:
    """What an embedding is the mean over.

    Attributes:
        layers: of the model, from 1.
        sample_length: tokens a window, at most.
        seed: of the windows.
        cross_documents: whether they run on into the next document.
    """

    layers: tuple[int, ...]
    sample_length: int
    seed: int
    cross_documents: bool = False


class Sampler:
    """Embeds domains with one model, each draw once."""

    def __init__(
        self,
        extractor: Extractor,
        windows: Windows,
        *,
        micro_batch_size: int | None,
        model: str,
        folder: Path | None = None,
        progress: bool = True,
    ) -> None:
        """Every rank must make it.

        Args:
            extractor: the model.
            windows: of each domain.
            micro_batch_size: windows a replica embeds at once; None: as suits its device.
            model: what tells the model from any other.
            folder: where finished draws are kept; None keeps none.
            progress: draw a progress bar, on the first rank.
        """
        self.extractor, self.windows, self.folder = extractor, windows, folder
        self._micro_batch_size, self._model = micro_batch_size or default_batch(), model
        self._progress = progress and is_first_rank()
        self._files: list[Path] = []

    def draw(
        self, domains: Mapping[str, Domain], samples: int, first: int = 0
    ) -> list[dict[str, ShardedEmbedding]]:
        """Embed windows `first` to `first + samples` of each domain; every rank must call it.

        Returns:
            For each layer, shards by domain name.
        """
        drawn: list[dict[str, ShardedEmbedding]] = [{} for _ in self.windows.layers]
        total = samples * len(domains)
        with progress_bar(
            desc="embedding", unit=" windows", total=total, disable=not self._progress
        ) as bar:
            advance = _Advance(bar, self.extractor.replicas)
            kept = 0
            for name, domain in domains.items():
                path = self._path(domain, samples, first)
                of_layers = on_first_rank(partial(_kept, path, name))
                if of_layers is None:
                    of_layers = self._embed(domain, samples, first, path, advance)
                else:
                    self._files += [path] if path is not None else []
                    kept += 1
                    bar.update(samples)
                for by_name, shards in zip(drawn, of_layers, strict=True):
                    by_name[name] = shards
        if kept:
            logger.info("%d of %d domains were embedded before", kept, len(domains))
        return drawn

    def forget(self) -> None:
        """Remove the draws that were kept, when what they were for is written."""
        for path in self._files:
            path.unlink(missing_ok=True)
        if self.folder is not None:
            with contextlib.suppress(OSError):  # another run's are in it
                self.folder.rmdir()

    def _embed(
        self,
        domain: Domain,
        samples: int,
        first: int,
        path: Path | None,
        advance: Callable[[int, int], None],
    ) -> list[ShardedEmbedding]:
        embeddings = embed(
            self.extractor,
            {domain.name: domain},
            layers=self.windows.layers,
            samples=samples,
            sample_length=self.windows.sample_length,
            micro_batch_size=self._micro_batch_size,
            seed=self.windows.seed,
            first=first,
            cross_documents=self.windows.cross_documents,
            advance=advance,
        )
        if path is not None:
            on_first_rank(partial(save_embeddings, path, embeddings))
            self._files.append(path)
        return [of_layer[domain.name] for of_layer in embeddings]

    def _path(self, domain: Domain, samples: int, first: int) -> Path | None:
        """Where a draw is kept: under a digest of all that it follows from."""
        if self.folder is None:
            return None
        follows_from = {
            **asdict(self.windows),
            "model": self._model,
            "domain": [domain.name, domain.fingerprint, domain.embeddable_tokens],
            "samples": [first, samples],
        }
        return self.folder / f"{digest(follows_from)}.safetensors"


def _kept(path: Path | None, name: str) -> list[ShardedEmbedding] | None:
    if path is None or not path.is_file():
        return None
    try:
        return [of_layer[name] for of_layer in load_embeddings(path)]
    except (UserError, KeyError):  # drawn again, and written over
        return None


def draw_until_known(
    sampler: Sampler,
    domains: Mapping[str, Domain],
    tolerance: float,
    half_width: Callable[[Mapping[str, ShardedEmbedding]], float],
) -> tuple[list[dict[str, ShardedEmbedding]], dict[str, int]]:
    """Draw until every weight is known well enough, or the domains are used up.

    Args:
        sampler: the first of its layers is the one that counts.
        domains: by name.
        tolerance: half-width of the widest interval that is good enough.
        half_width: that of the weights from these embeddings.

    Returns:
        For each layer, shards by domain name; and how many windows each domain's are of.
    """
    embeddings = sampler.draw(domains, _FIRST_SAMPLES)
    samples = dict.fromkeys(domains, _FIRST_SAMPLES)
    while True:
        # All go on together: a weight moves with any of the embeddings. A domain of whose tokens as
        # many have been drawn as there are has little more to tell.
        tokens = {name: int(embeddings[0][name].tokens.sum()) for name in domains}
        left = {
            name: domain
            for name, domain in domains.items()
            if tokens[name] < domain.embeddable_tokens
        }
        width = on_first_rank(lambda: half_width(embeddings[0]))
        logger.info(
            "%s samples a domain: weights known to %.4f", f"{max(samples.values()):,}", width
        )
        if width <= tolerance or not left:
            return embeddings, samples
        # The error falls with the root of the number of windows.
        growth = min(max(1.1 * (width / tolerance) ** 2 - 1, 0.25), 3.0)
        for name, domain in left.items():
            filled = (domain.embeddable_tokens - tokens[name]) * samples[name] / tokens[name]
            more = max(math.ceil(min(growth * samples[name], filled)), SHARDS)
            new = sampler.draw({name: domain}, more, samples[name])
            for of_layer, drawn in zip(embeddings, new, strict=True):
                of_layer[name] = of_layer[name].joined(drawn[name])
            samples[name] += more


def default_batch() -> int:
    """Windows at once that embed fastest: four of 512 tokens at width 768 leave a CPU's caches."""
    return 32 if current_device().type == "cuda" else 4


class _Advance:
    """Tells a progress bar of windows, and of tokens a second."""

    def __init__(self, bar: Any, replicas: int) -> None:
        self._bar, self._replicas = bar, replicas
        self._tokens, self._started = 0, time.monotonic()

    def __call__(self, windows: int, tokens: int) -> None:
        """Count what one of the replicas has done; the others are as far."""
        self._tokens += tokens * self._replicas
        rate = self._tokens / (time.monotonic() - self._started)
        self._bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
        self._bar.update(windows * self._replicas)
