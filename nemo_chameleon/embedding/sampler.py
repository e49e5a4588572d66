"""Which windows are embedded, and how many; each is embedded once, even if the run is killed.

The sampler keeps every finished draw of a domain beside the mixture file (draws.py). When the
mixture file has been written, the draws are removed.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from nemo_chameleon.data.domain import Domain
from nemo_chameleon.data.tokenizer import find_tokenizer
from nemo_chameleon.distributed.collectives import on_first_rank
from nemo_chameleon.distributed.device import current_device
from nemo_chameleon.embedding.draws import KeptDraws
from nemo_chameleon.embedding.hooks import Extractor
from nemo_chameleon.embedding.pooling import embed, first_batch, padded_length
from nemo_chameleon.embedding.reencoding import Reencoding
from nemo_chameleon.embedding.windows import WindowReader, Windows
from nemo_chameleon.method.embeddings import SHARDS, ShardedEmbedding
from nemo_chameleon.utils.console import progress_bar
from nemo_chameleon.utils.logging import package_logger
from nemo_chameleon.utils.ranks import is_first_rank

logger = package_logger(__package__)
T = TypeVar("T")

# Windows per domain that `draw_until_known` starts with.
_FIRST_SAMPLES = 512


class Sampler:
    """Embeds domains with one model, and each draw once."""

    def __init__(
        self,
        extractor: Extractor,
        windows: Windows,
        *,
        micro_batch_size: int | None,
        model: str,
        reencoding: Reencoding | None = None,
        folder: Path | None = None,
        progress: bool = True,
    ) -> None:
        """Take the model and the windows; every rank must construct a sampler.

        Args:
            extractor: the model.
            windows: the layers, and the windows of each domain.
            micro_batch_size: windows that each replica embeds at once; None for `default_batch`.
            model: a text that differs from that of any other model.
            reencoding: how the domains' tokens become the model's; None if they are the same.
            folder: the folder where finished draws are kept; None keeps none.
            progress: whether the first rank draws a progress bar.
        """
        self.extractor, self.windows = extractor, windows
        self._micro_batch_size = micro_batch_size or default_batch()
        self._reencoding, self._progress = reencoding, progress and is_first_rank()
        self._draws = None if folder is None else KeptDraws(folder, windows, model, reencoding)

    def draw(
        self, domains: Mapping[str, Domain], samples: int, first: int = 0
    ) -> list[dict[str, ShardedEmbedding]]:
        """Embed windows of each domain; every rank must call it.

        Args:
            domains: the domains, by name.
            samples: windows per domain.
            first: index of the first window.

        Returns:
            For each layer the embeddings by domain name, in shards, equal on every rank.
        """
        drawn: list[dict[str, ShardedEmbedding]] = [{} for _ in self.windows.layers]
        total = samples * len(domains)
        with progress_bar(
            desc="embedding", unit=" windows", total=total, disable=not self._progress
        ) as bar:
            advance = _Advance(bar, self.extractor.replicas)
            kept = 0
            for name, domain in domains.items():
                of_layers = on_first_rank(partial(self._kept, domain, samples, first))
                if of_layers is None:
                    of_layers = self._embed(domain, samples, first, advance)
                else:
                    kept += 1
                    bar.update(samples)
                for by_name, shards in zip(drawn, of_layers, strict=True):
                    by_name[name] = shards
        if kept:
            logger.info("%d of %d domains had been embedded already", kept, len(domains))
        return drawn

    def draw_all(
        self, domains: Mapping[str, Domain], samples: Mapping[str, int]
    ) -> list[dict[str, ShardedEmbedding]]:
        """Embed a given number of windows of each domain; every rank must call it.

        Args:
            domains: the domains, by name.
            samples: windows by domain name.

        Returns:
            As `draw`.
        """
        self.announce(domains, max(samples.values()))
        if len(set(samples.values())) == 1:
            return self.draw(domains, max(samples.values()))
        drawn: list[dict[str, ShardedEmbedding]] = [{} for _ in self.windows.layers]
        for name, domain in domains.items():
            for all_of_layer, of_layer in zip(
                drawn, self.draw({name: domain}, samples[name]), strict=True
            ):
                all_of_layer.update(of_layer)
        return drawn

    def announce(self, domains: Mapping[str, Domain], samples: int, first: int = 0) -> None:
        """Log how much will be embedded, and how long it takes at the rate of one batch.

        Every rank must call it. Draws that are kept already do not count.

        Args:
            domains: the domains, by name.
            samples: windows per domain.
            first: index of the first window.

        Raises:
            UserError: the model lacks a layer or positions for the windows, or data cannot be read.
        """
        layers, length, device = self.windows.layers, self.windows.sample_length, current_device()
        padded_length(self.extractor, layers, length)

        def missing() -> list[str]:
            draws = self._draws
            if draws is None:
                return list(domains)
            paths = {name: draws.path(domain, samples, first) for name, domain in domains.items()}
            return [name for name, path in paths.items() if not path.is_file()]

        names = on_first_rank(missing)
        if not names:
            return
        reader = WindowReader(domains[names[0]], self.windows, self._reencoding)
        numbers = range(first, first + self._micro_batch_size)
        reader.read(numbers)  # estimates what it needs to know
        reading, tokens = _timed(lambda: first_batch(reader, numbers, self.extractor))
        batch = tokens.to(device)
        for _ in range(2):  # the first batch warms the device up
            forward, _ = _timed(lambda: _run(self.extractor, batch, layers))
        # The slowest rank decides, and windows are read while the device works.
        seconds = torch.tensor(max(reading, forward), device=device)
        dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
        batches = math.ceil(
            len(names) * samples / (self._micro_batch_size * self.extractor.replicas)
        )
        logger.info(
            "%d domains are embedded: at most %s tokens go through layers 1 to %d of %d, in about "
            "%s s at the rate of a first batch",
            len(names),
            f"{len(names) * samples * length:,}",
            max(layers),
            self.extractor.num_layers,
            f"{batches * float(seconds):,.0f}",
        )

    def embeddable_tokens(self, domain: Domain) -> int:
        """Return how many of the model's tokens a domain has that count towards its embedding.

        Args:
            domain: the domain.

        Returns:
            The number, which is an estimate where the model has another tokenizer.
        """
        return WindowReader(domain, self.windows, self._reencoding).embeddable_tokens

    def forget(self) -> None:
        """Remove the kept draws; call it on one rank when the mixture file has been written."""
        if self._draws is not None:
            self._draws.forget()

    def _kept(self, domain: Domain, samples: int, first: int) -> list[ShardedEmbedding] | None:
        return None if self._draws is None else self._draws.read(domain, samples, first)

    def _embed(
        self,
        domain: Domain,
        samples: int,
        first: int,
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
            normalize_states=self.windows.normalize_states,
            reencoding=self._reencoding,
            advance=advance,
        )
        if self._draws is not None:
            on_first_rank(partial(self._draws.write, domain, samples, first, embeddings))
        return [of_layer[domain.name] for of_layer in embeddings]


def draw_until_known(
    sampler: Sampler,
    domains: Mapping[str, Domain],
    tolerance: float,
    half_width: Callable[[Mapping[str, ShardedEmbedding]], float],
) -> tuple[list[dict[str, ShardedEmbedding]], dict[str, int]]:
    """Draw windows until every weight is known well enough, or the domains have no more tokens.

    Every rank must call it.

    Args:
        sampler: the sampler; the weights are computed from the first of its layers.
        domains: the domains, by name.
        tolerance: the largest half-width of the weights' intervals that is accepted.
        half_width: computes the largest half-width of the weights' intervals from embeddings.

    Returns:
        For each layer the embeddings by domain name, in shards; and the number of windows that each
        domain's embedding is a mean over, by name.
    """
    logger.info("the first %d windows of each domain show how many are needed", _FIRST_SAMPLES)
    sampler.announce(domains, _FIRST_SAMPLES)
    embeddings = sampler.draw(domains, _FIRST_SAMPLES)
    samples = dict.fromkeys(domains, _FIRST_SAMPLES)
    embeddable = {name: sampler.embeddable_tokens(domain) for name, domain in domains.items()}
    while True:
        # All domains are drawn further together, because each weight depends on all embeddings. A
        # domain is left out once as many tokens have been drawn as it has: more would tell little.
        tokens = {name: int(embeddings[0][name].tokens.sum()) for name in domains}
        left = {name: domain for name, domain in domains.items() if tokens[name] < embeddable[name]}
        width = on_first_rank(lambda: half_width(embeddings[0]))
        logger.info(
            "%s samples per domain: weights are known to within %.4f",
            f"{max(samples.values()):,}",
            width,
        )
        if width <= tolerance or not left:
            return embeddings, samples
        # The error falls with the square root of the number of windows.
        growth = min(max(1.1 * (width / tolerance) ** 2 - 1, 0.25), 3.0)
        for name, domain in left.items():
            filled = (embeddable[name] - tokens[name]) * samples[name] / tokens[name]
            more = max(math.ceil(min(growth * samples[name], filled)), SHARDS)
            sampler.announce({name: domain}, more, samples[name])
            new = sampler.draw({name: domain}, more, samples[name])
            for of_layer, drawn in zip(embeddings, new, strict=True):
                of_layer[name] = of_layer[name].joined(drawn[name])
            samples[name] += more


def heaviest_token(shards: ShardedEmbedding, tokenizer: str | None) -> dict[str, str]:
    """Name the token with the largest hidden state, for the facts of a domain in a mixture file.

    Args:
        shards: the domain's embedding.
        tokenizer: the tokenizer of the model that embedded it; None if it is not known.

    Returns:
        `heaviest_token`, or nothing where it is not known.
    """
    if shards.heaviest is None or tokenizer is None:
        return {}
    text = find_tokenizer(tokenizer).id_to_token(shards.heaviest.token)
    return {} if text is None else {"heaviest_token": text}


def _run(extractor: Extractor, tokens: torch.Tensor, layers: Sequence[int]) -> None:
    for _ in extractor.parts(tokens, layers):  # none of them is kept
        pass


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    """Do something, and return the seconds that it took on this rank's device."""
    started = time.monotonic()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic() - started, result


def default_batch() -> int:
    """Return the number of windows to embed at once that is fastest on this process's device.

    More than four windows of 512 tokens, at width 768, do not fit into a CPU's caches.

    Returns:
        32 on CUDA, and 4 on a CPU.
    """
    return 32 if current_device().type == "cuda" else 4


class _Advance:
    """Shows on a progress bar how many windows are done, and the tokens per second."""

    def __init__(self, bar: Any, replicas: int) -> None:
        self._bar, self._replicas = bar, replicas
        self._tokens, self._started = 0, time.monotonic()

    def __call__(self, windows: int, tokens: int) -> None:
        """Count what this replica has done, and assume that the others have done as much."""
        self._tokens += tokens * self._replicas
        rate = self._tokens / (time.monotonic() - self._started)
        self._bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
        self._bar.update(windows * self._replicas)
