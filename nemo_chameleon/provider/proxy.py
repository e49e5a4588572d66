"""How a mixture is computed: train or load the proxies, embed the domains, write the weights.

A proxy is not special: `trainer.train` trains a small model on a uniform mixture. A run can be
killed and started again at any point, and what is finished is not done twice.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nemo_chameleon.config.schema import CAVEAT_KEYS, Config
from nemo_chameleon.config.validation import preset_of
from nemo_chameleon.data.domain import Domain
from nemo_chameleon.data.kinds import kind_of
from nemo_chameleon.data.vocabulary import Vocabulary
from nemo_chameleon.distributed.collectives import on_first_rank
from nemo_chameleon.distributed.lease import owned
from nemo_chameleon.embedding.registry import Proxy
from nemo_chameleon.embedding.sampler import Sampler, draw_until_known, heaviest_token
from nemo_chameleon.method.embeddings import ShardedEmbedding
from nemo_chameleon.mixture import Mixture, compute
from nemo_chameleon.mixture.embeddings_file import embeddings_file, save_embeddings
from nemo_chameleon.mixture.tables import layers_table
from nemo_chameleon.provider.plan import EmbeddingPlan
from nemo_chameleon.provider.preflight import Prepared
from nemo_chameleon.provider.trained import EmbeddingProxy, kept_draws, train_proxies
from nemo_chameleon.utils.logging import package_logger
from nemo_chameleon.utils.provenance import provenance

logger = package_logger(__package__)


def compute_mixture(prepared: Prepared) -> Mixture:
    """Train the proxies, embed the domains and compute their weights; every rank must call it.

    Call it within `process_group`. The first rank writes the mixture file, and the embeddings
    beside it as safetensors. A mixture that another job has computed meanwhile is used as it is.

    Args:
        prepared: what `prepare` found out, for a configuration with data.mixture=chameleon.

    Returns:
        The mixture before bounds, equal to the last bit on every rank.

    Raises:
        UserError: the training or the embedding fails for a reason that the user can mend, another
            job computes this mixture file, or it cannot be written.
    """
    file = Path(prepared.config.chameleon.file)
    lease = file.with_name(f"{file.name}.lease")
    remedy = "set chameleon.file to another file"
    with owned(lease, f"chameleon.file={file}", remedy) as confirm:
        stored = prepared.stored_since()  # another job may have had the lease until now
        if stored is not None:
            logger.info("weights from %s, which another job has computed meanwhile", file)
            return stored
        mixture = _computed(prepared, confirm)
    logger.info("weights written to %s", file)
    if mixture.method["tempering"] < 1:
        logger.warning(
            "the weights were tempered to keep the effective number of domains that "
            "chameleon.min_effective asks for"
        )
    for caveat in mixture.method["caveats"]:
        logger.warning("%s", caveat)
    if "layers" in mixture.method:
        logger.info("%s", layers_table(mixture))
    return mixture


def _computed(prepared: Prepared, confirm: Callable[[], None]) -> Mixture:
    config, domains, plan = prepared.config, prepared.domains, prepared.plan
    assert plan is not None, "a computed mixture has a plan"
    if plan.proxy is None:
        proxies = train_proxies(config, domains, plan)
    else:
        proxies = [EmbeddingProxy(plan.proxy, {}, None)]
    embedded: list[_Embedded] = []
    for proxy in proxies:
        samples = embedded[0].samples if embedded else None
        embedded.append(_embed(config, domains, plan, proxy, samples))

    def write() -> str:
        method, embeddings = dict(plan.method), [each.by_layer[0] for each in embedded]
        if len(plan.windows.layers) > 1:
            method["layers"] = _weights_by_layer(config, plan, embedded)
        records = [
            {**_record(config, plan, proxy), **each.facts, "settings": settings}
            for proxy, each, settings in zip(proxies, embedded, plan.settings, strict=True)
        ]
        mixture = compute.mixture_from_embeddings(
            embeddings,
            {
                name: {
                    **domain.facts(),
                    "samples": embedded[0].samples[name],
                    **heaviest_token(embeddings[0][name], plan.tokenizer),
                }
                for name, domain in domains.items()
            },
            objective=plan.objective,
            preset=preset_of(config.chameleon),
            tolerance=config.chameleon.tolerance,
            method=method,
            proxy=records[0] if len(records) == 1 else {"averaged": records},
            created=provenance(),
            settings=CAVEAT_KEYS,
        )
        text = mixture.to_json()
        save_embeddings(embeddings_file(config.chameleon.file), embeddings)
        mixture.save(config.chameleon.file)
        for proxy, each in zip(proxies, embedded, strict=True):
            each.sampler.forget()
            if proxy.drift is not None:
                proxy.drift.forget()
        return text

    confirm()
    return Mixture.from_json(on_first_rank(write), config.chameleon.file)


def train_proxy(prepared: Prepared) -> None:
    """Train the proxies and stop, if proxies have to be trained; every rank must call it.

    This is the part of `compute_mixture` that may take the longest.

    Args:
        prepared: what `prepare` found out.
    """
    config, plan = prepared.config, prepared.plan
    if prepared.stored is not None or plan is None:
        logger.info(
            "data.mixture=%s: the mixture exists, so no proxy is needed", config.data.mixture
        )
    elif plan.proxy is not None:
        logger.info("no proxy is trained, because an existing model embeds the domains")
    else:
        train_proxies(config, prepared.domains, plan)


@dataclass(frozen=True)
class _Embedded:
    """The domains as one proxy embedded them.

    Attributes:
        sampler: embedded them.
        by_layer: for each wanted layer the embeddings by domain name.
        samples: number of windows of each domain, by name.
        facts: about the proxy's drift, for the mixture file.
    """

    sampler: Sampler
    by_layer: list[dict[str, ShardedEmbedding]]
    samples: dict[str, int]
    facts: dict[str, Any]


def _record(config: Config, plan: EmbeddingPlan, proxy: EmbeddingProxy) -> dict[str, Any]:
    """Return what the mixture file records about a proxy, except its drift and its settings."""
    return {
        **_described(proxy.proxy, Vocabulary.of(config.data).vocab_size),
        **proxy.facts,
        "split": config.data.split,
        "tokenizer": config.data.tokenizer,
        **({} if plan.reencoding is None else {"reencoded": plan.reencoding.record()}),
        **kind_of(config.data).reading(config.data, config.model.seq_length),
        "trained": proxy.proxy.identity,
    }


def _described(proxy: Proxy, vocab_size: int) -> dict[str, Any]:
    """Describe the proxy and the vocabulary of the domains, which may be smaller than its own."""
    record = proxy.record()
    own = record.get("vocab_size", vocab_size)
    others = {} if own == vocab_size else {"model_vocab_size": own}
    return {**record, "vocab_size": vocab_size, **others}


def _weights_by_layer(
    config: Config, plan: EmbeddingPlan, embedded: Sequence[_Embedded]
) -> dict[str, dict[str, float]]:
    """Return the weights that the embeddings after each layer would give."""
    wanted, weights = config.chameleon, {}
    for number, layer in enumerate(plan.windows.layers):
        by_proxy = [each.by_layer[number] for each in embedded]
        x = [np.stack([shards.embedding for shards in proxy.values()]) for proxy in by_proxy]
        w = compute.weigh(x, plan.objective, preset_of(wanted))
        weights[layer] = dict(zip(by_proxy[0], w.tolist(), strict=True))
    return {str(layer): weights[layer] for layer in sorted(weights)}


def _embed(
    config: Config,
    domains: Mapping[str, Domain],
    plan: EmbeddingPlan,
    proxy: EmbeddingProxy,
    samples: Mapping[str, int] | None,
) -> _Embedded:
    """Embed the domains with a proxy: the windows of an earlier one, or those that are wanted."""
    wanted, model = config.chameleon, proxy.proxy
    with model.opened() as extractor:
        sampler = Sampler(
            extractor,
            plan.windows,
            micro_batch_size=wanted.micro_batch_size,
            model=f"{model.identity} {model.record()['precision']}",
            reencoding=plan.reencoding,
            folder=kept_draws(config),
            progress=config.logging.progress,
        )
        facts = {} if proxy.drift is None else proxy.drift.measured(sampler)
        if samples is None and isinstance(wanted.samples, int):
            samples = dict.fromkeys(domains, wanted.samples)
        if samples is None:
            by_layer, drawn = draw_until_known(
                sampler, domains, wanted.tolerance, lambda own: _half_width(config, plan, own)
            )
            return _Embedded(sampler, by_layer, drawn, facts)
        return _Embedded(sampler, sampler.draw_all(domains, samples), dict(samples), facts)


def _half_width(
    config: Config, plan: EmbeddingPlan, embeddings: Mapping[str, ShardedEmbedding]
) -> float:
    """Return the largest half-width of the weights' intervals over windows."""
    preset = preset_of(config.chameleon)
    errors = compute.errors_of([embeddings], list(embeddings), plan.objective, preset)
    assert errors is not None, "the first draw has more than one shard"
    return float(errors.half_widths().max())
