"""How a mixture is computed: train or load the proxy, embed the domains, write the weights.

The proxy is not special: `trainer.train` trains a small model on a uniform mixture. A run can be
killed and started again at any point, and what is finished is not done twice.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nemo_chameleon.config.schema import CAVEAT_KEYS, Config
from nemo_chameleon.config.validation import preset_of
from nemo_chameleon.data.domain import Domain
from nemo_chameleon.data.kinds import kind_of
from nemo_chameleon.data.vocabulary import Vocabulary
from nemo_chameleon.distributed.collectives import on_first_rank
from nemo_chameleon.embedding.megatron import MegatronProxy
from nemo_chameleon.embedding.registry import Proxy
from nemo_chameleon.embedding.sampler import Sampler, draw_until_known, heaviest_token
from nemo_chameleon.method.embeddings import ShardedEmbedding
from nemo_chameleon.mixture import Mixture, compute
from nemo_chameleon.mixture.embeddings_file import embeddings_file, save_embeddings
from nemo_chameleon.mixture.tables import layers_table
from nemo_chameleon.models import checkpoint
from nemo_chameleon.models.pretrained import PretrainedCheckpoint
from nemo_chameleon.provider.plan import EmbeddingPlan
from nemo_chameleon.provider.preflight import Prepared
from nemo_chameleon.provider.runs import proxy_run
from nemo_chameleon.train import trainer
from nemo_chameleon.utils.logging import package_logger
from nemo_chameleon.utils.provenance import provenance

logger = package_logger(__package__)


def compute_mixture(prepared: Prepared) -> Mixture:
    """Train the proxy, embed the domains and compute their weights; every rank must call it.

    Call it within `process_group`. The first rank writes the mixture file, and the embeddings
    beside it as safetensors.

    Args:
        prepared: what `prepare` found out, for a configuration with data.mixture=chameleon.

    Returns:
        The mixture before bounds, equal to the last bit on every rank.

    Raises:
        UserError: the training or the embedding fails for a reason that the user can mend, or the
            mixture file cannot be written.
    """
    config, domains, plan = prepared.config, prepared.domains, prepared.plan
    assert plan is not None, "a computed mixture has a plan"
    proxy = plan.proxy
    facts: dict[str, Any] = {}
    if proxy is None:
        proxy, facts = _trained(config, domains)
    sampler, by_layer, samples = _embed(config, domains, plan, proxy)
    embeddings, identity = by_layer[0], proxy.identity

    def write() -> str:
        method = dict(plan.method)
        if len(by_layer) > 1:
            method["layers"] = _weights_by_layer(config, plan, by_layer)
        mixture = compute.mixture_from_embeddings(
            [embeddings],
            {
                name: {
                    **domain.facts(),
                    "samples": samples[name],
                    **heaviest_token(embeddings[name], plan.tokenizer),
                }
                for name, domain in domains.items()
            },
            objective=plan.objective,
            preset=preset_of(config.chameleon),
            tolerance=config.chameleon.tolerance,
            method=method,
            proxy={
                **_described(proxy, Vocabulary.of(config.data).vocab_size),
                **facts,
                "split": config.data.split,
                "tokenizer": config.data.tokenizer,
                **({} if plan.reencoding is None else {"reencoded": plan.reencoding.record()}),
                **kind_of(config.data).reading(config.data, config.model.seq_length),
                "settings": plan.settings,
                "trained": identity,
            },
            created=provenance(),
            settings=CAVEAT_KEYS,
        )
        text = mixture.to_json()
        save_embeddings(embeddings_file(config.chameleon.file), [embeddings])
        mixture.save(config.chameleon.file)
        sampler.forget()
        return text

    mixture = Mixture.from_json(on_first_rank(write), config.chameleon.file)
    logger.info("weights written to %s", config.chameleon.file)
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


def train_proxy(prepared: Prepared) -> None:
    """Train the proxy and stop, if a proxy has to be trained; every rank must call it.

    This is the part of `compute_mixture` that may take the longest.

    Args:
        prepared: what `prepare` found out.
    """
    config, plan = prepared.config, prepared.plan
    if prepared.stored is not None:
        logger.info(
            "data.mixture=%s: the mixture exists, so no proxy is needed", config.data.mixture
        )
    elif plan is not None and plan.proxy is not None:
        logger.info("no proxy is trained, because an existing model embeds the domains")
    else:
        trainer.train(proxy_run(config, prepared.domains))


def _described(proxy: Proxy, vocab_size: int) -> dict[str, Any]:
    """Describe the proxy and the vocabulary of the domains, which may be smaller than its own."""
    record = proxy.record()
    own = record.get("vocab_size", vocab_size)
    others = {} if own == vocab_size else {"model_vocab_size": own}
    return {**record, "vocab_size": vocab_size, **others}


def _weights_by_layer(
    config: Config, plan: EmbeddingPlan, by_layer: Sequence[Mapping[str, ShardedEmbedding]]
) -> dict[str, dict[str, float]]:
    """Return the weights that the embeddings after each layer would give."""
    wanted, weights = config.chameleon, {}
    for layer, embeddings in zip(plan.windows.layers, by_layer, strict=True):
        x = np.stack([shards.embedding for shards in embeddings.values()])
        w = compute.weigh([x], plan.objective, preset_of(wanted))
        weights[layer] = dict(zip(embeddings, w.tolist(), strict=True))
    return {str(layer): weights[layer] for layer in sorted(weights)}


def _trained(config: Config, domains: Mapping[str, Domain]) -> tuple[Proxy, dict[str, Any]]:
    """Train the proxy, or continue its training; return it, and facts about the training."""
    run = proxy_run(config, domains)
    result = trainer.train(run)

    def find() -> MegatronProxy:
        path = checkpoint.newest(run.directory)
        assert path is not None, "trainer.train leaves a checkpoint"
        found = PretrainedCheckpoint(path, config.proxy, run.vocab_size)
        _ = found.identity  # the other ranks get it with the rest, and read no file for it
        return MegatronProxy(found)

    facts = {key: result[key] for key in ("loss", "parameters", "tokens")}
    return on_first_rank(find), facts


def _embed(
    config: Config, domains: Mapping[str, Domain], plan: EmbeddingPlan, proxy: Proxy
) -> tuple[Sampler, list[dict[str, ShardedEmbedding]], dict[str, int]]:
    """Return the sampler, the embeddings for each wanted layer, and windows drawn by domain."""
    wanted = config.chameleon
    with proxy.opened() as extractor:
        sampler = Sampler(
            extractor,
            plan.windows,
            micro_batch_size=wanted.micro_batch_size,
            model=f"{proxy.identity} {proxy.record()['precision']}",
            reencoding=plan.reencoding,
            folder=_kept_draws(config),
            progress=config.logging.progress,
        )
        if isinstance(wanted.samples, int):
            sampler.announce(domains, wanted.samples)
            drawn = sampler.draw(domains, wanted.samples)
            return sampler, drawn, dict.fromkeys(domains, wanted.samples)

        def half_width(embeddings: Mapping[str, ShardedEmbedding]) -> float:
            preset = preset_of(wanted)
            errors = compute.errors_of([embeddings], list(domains), plan.objective, preset)
            assert errors is not None
            return float(errors.half_widths().max())

        return sampler, *draw_until_known(sampler, domains, wanted.tolerance, half_width)


def _kept_draws(config: Config) -> Path:
    """Return the folder where finished draws wait for the mixture file."""
    file = Path(config.chameleon.file)
    return file.with_name(f"{file.stem}.partial")
