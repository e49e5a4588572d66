"""New domains for a computed mixture: its own proxy embeds them, and nothing is trained."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_chameleon.config.data import SFT, DomainConfig
from nemo_chameleon.data.domain import Domain
from nemo_chameleon.data.kinds import kind_of, read_as_recorded
from nemo_chameleon.data.tokenizer import has_tokenizer
from nemo_chameleon.embedding.reencoding import Reencoding
from nemo_chameleon.embedding.registry import proxy_from_record
from nemo_chameleon.embedding.sampler import Sampler, heaviest_token
from nemo_chameleon.embedding.windows import Windows
from nemo_chameleon.method.embeddings import ShardedEmbedding
from nemo_chameleon.mixture.edit import ComputedMixture
from nemo_chameleon.models.pretrained import tokenizer_beside
from nemo_chameleon.utils.errors import UserError


def embed_new(
    computed: ComputedMixture,
    paths: Mapping[str, str | list[str]],
    checkpoints: Sequence[str] = (),
    micro_batch_size: int | None = None,
    tokenizer: str | None = None,
    cache: str = "cache",
) -> tuple[list[dict[str, ShardedEmbedding]], dict[str, dict[str, Any]]]:
    """Embed new domains with the proxies of a computed mixture, from windows like its own.

    Every rank must call it, within `process_group` and outside of any layout; the ranks share the
    windows.

    Args:
        computed: the mixture.
        paths: paths of the new domains by name, as in the configuration.
        checkpoints: where the mixture's proxies are now, in the order of the mixture file; empty
            for the places that the file records.
        micro_batch_size: windows that each rank embeds at once; None for the device's default.
        tokenizer: where the tokenizer of the domains is now; None for the place that is recorded.
        cache: data.cache, for domains of examples to finetune on.

    Returns:
        For each proxy the embeddings of the new domains by name; and facts about these domains by
        name, for the mixture file.

    Raises:
        UserError: a proxy that is not there or is another one, a domain that the mixture has
            already, or data that cannot be read.
    """
    method = computed.mixture.method
    samples = max(int(facts["samples"]) for facts in computed.facts.values())
    places: list[str | None] = list(checkpoints) or [None] * len(computed.proxies)
    if len(places) != len(computed.proxies):
        raise UserError(
            f"the mixture was computed through {len(computed.proxies)} proxies: name each one's "
            "checkpoint with --proxy"
        )
    for name in paths:
        computed.require_unknown(name)
    embeddings, domains, own_tokenizer = [], dict[str, Domain](), None
    for place, record in zip(places, computed.proxies, strict=True):
        if tokenizer is not None:
            record = {**record, "tokenizer": tokenizer}
        _require_tokenizer(record)
        proxy = proxy_from_record(record, place)
        reencoding = _reencoding(record, place)
        domains = _opened_as(record, paths, method, cache)
        for name, domain in domains.items():
            computed.require_unknown(name, domain.fingerprint, domain.sources.values())
        windows = Windows.recorded((method["layer"],), method)
        own_tokenizer = _tokenizer(record) if reencoding is None else reencoding.target
        with proxy.opened() as extractor:
            sampler = Sampler(
                extractor,
                windows,
                micro_batch_size=micro_batch_size,
                model=proxy.identity,
                reencoding=reencoding,
            )
            sampler.announce(domains, samples)
            embeddings += sampler.draw(domains, samples)
    return embeddings, {
        name: {
            **domain.facts(),
            "samples": samples,
            **heaviest_token(embeddings[-1][name], own_tokenizer),
        }
        for name, domain in domains.items()
    }


def _require_tokenizer(record: Mapping[str, Any]) -> None:
    """Check that the tokenizer of a mixture's domains is there, if it is needed."""
    path = record.get("tokenizer")
    if path is not None and ("reencoded" in record or SFT in record) and not has_tokenizer(path):
        raise UserError(
            f"{path}, the tokenizer of the mixture's domains, is not there: name the place where "
            "it is now with --tokenizer"
        )


def _reencoding(record: Mapping[str, Any], place: str | None) -> Reencoding | None:
    """Return how the domains are encoded for a proxy that may have moved with its tokenizer."""
    if place is None:
        return Reencoding.recorded(record)
    if "hf" in record:
        return Reencoding.recorded(record, [place])
    # A file that is added to the checkpoint's own folder would make it another checkpoint.
    beside = [tokenizer_beside(place), str(Path(place).parent / "tokenizer.json")]
    return Reencoding.recorded(record, [path for path in beside if path is not None])


def _tokenizer(record: Mapping[str, Any]) -> str | None:
    """Return the tokenizer of a mixture's domains if it is there: it only names tokens."""
    path = record.get("tokenizer")
    return path if path is not None and has_tokenizer(path) else None


def _opened_as(
    record: Mapping[str, Any],
    paths: Mapping[str, str | list[str]],
    method: Mapping[str, Any],
    cache: str,
) -> dict[str, Domain]:
    """Open new domains, and read them as the mixture's own domains were read."""
    wanted = {name: DomainConfig(path=path) for name, path in paths.items()}
    data, length = read_as_recorded(record, wanted, cache)
    answers_alone = method.get("tokens") == "answers"
    return kind_of(data).open_domains(data, length, answers_alone=answers_alone)
