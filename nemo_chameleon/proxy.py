"""The proxy: a small GPT trained on uniform weights, and the mixture computed through it.

The proxy is not special: it is `training.train` with a small model and a uniform mixture. It can
be killed and started again at any point; what is finished is not done twice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nemo_chameleon import checkpoint, datasets, parallel, scoring, training
from nemo_chameleon.changes import Computed
from nemo_chameleon.checks import preset_of
from nemo_chameleon.domains import Domain
from nemo_chameleon.embedding import middle_layer
from nemo_chameleon.errors import UserError
from nemo_chameleon.files import digest
from nemo_chameleon.job import Job
from nemo_chameleon.mixture import Mixture, created
from nemo_chameleon.report import layers_table
from nemo_chameleon.sampling import Sampler, Windows, draw_until_known
from nemo_chameleon.schema import (
    ALL,
    AUTO,
    SFT,
    Config,
    DataConfig,
    DomainConfig,
)
from nemo_chameleon.sft.domain import shortened
from nemo_chameleon.sft.index import Reader
from nemo_chameleon.shards import Shards, embeddings_file, save_embeddings
from nemo_chameleon.sources import (
    MegatronSource,
    Source,
    megatron_source,
    source_from_record,
    transformers_source,
)

# What of `data` decides how JSONL is read.
_SFT = ("chat_template", "on_malformed", "on_too_long", "cache")


def compute_mixture(config: Config, domains: Mapping[str, Domain]) -> Mixture:
    """Train the proxy, embed the domains, compute their weights; every rank must call it.

    Writes the mixture file, and the embeddings beside it as safetensors.

    Returns:
        The mixture, equal to the last bit on every rank.
    """
    source, facts = _trained(config, domains) if trains(config) else (existing(config), {})
    sampler, by_layer, samples = _embed(config, domains, source)
    embeddings = by_layer[0]

    def write() -> str:
        method = embedding_method(config)
        if len(by_layer) > 1:
            method["layers"] = _weights_by_layer(config, by_layer)
        mixture = scoring.mixture_from_embeddings(
            [embeddings],
            {name: {**domains[name].facts(), "samples": samples[name]} for name in domains},
            objective=config.chameleon.objective,
            preset=preset_of(config.chameleon),
            tolerance=config.chameleon.tolerance,
            method=method,
            proxy={
                **source.record(),
                **facts,
                "vocab_size": datasets.Vocabulary.of(config.data).vocab_size,
                "split": config.data.split,
                "tokenizer": config.data.tokenizer,
                **_read_with(config.data, config.model.seq_length),
                "settings": settings_digest(config, domains),
                "trained": source.identity,
            },
            created=created(),
        )
        text = mixture.to_json()
        save_embeddings(embeddings_file(config.chameleon.file), [embeddings])
        mixture.save(config.chameleon.file)
        sampler.forget()
        return text

    mixture = Mixture.from_json(parallel.on_first_rank(write), config.chameleon.file)
    parallel.say(f"weights written to {config.chameleon.file}")
    if mixture.method["tempering"] < 1:
        parallel.say(
            "note: the weights were tempered, or they would have been less spread out than "
            "chameleon.min_effective"
        )
    for caveat in mixture.method["caveats"]:
        parallel.say(f"note: {caveat}")
    if "layers" in mixture.method:
        parallel.say(layers_table(mixture))
    return mixture


def _read_with(data: DataConfig, seq_length: int) -> dict[str, Any]:
    """What it takes to read more JSONL as a mixture's domains were read."""
    if data.dataset != SFT:
        return {}
    settings = {key: getattr(data, key) for key in _SFT}
    return {"sft": {**settings, "seq_length": seq_length, "reader": Reader(data).identity}}


def _weights_by_layer(
    config: Config, by_layer: Sequence[Mapping[str, Shards]]
) -> dict[str, dict[str, float]]:
    """What the weights would be after each layer."""
    wanted, weights = config.chameleon, {}
    for layer, embeddings in zip(_layers(config), by_layer, strict=True):
        x = np.stack([shards.embedding for shards in embeddings.values()])
        w = scoring.weigh([x], wanted.objective, preset_of(wanted))
        weights[layer] = dict(zip(embeddings, w.tolist(), strict=True))
    return {str(layer): weights[layer] for layer in sorted(weights)}


def trains(config: Config) -> bool:
    """Whether a proxy is to be trained, and nothing that exists embeds."""
    proxy = config.chameleon.source == "proxy"
    return proxy and config.proxy.load is None and config.proxy.hf is None


def existing(config: Config) -> Source:
    """The model that embeds: the one that is finetuned, or what proxy.load or proxy.hf names.

    Raises:
        UserError: it is not there, or of another tokenizer than the domains.
    """
    wanted, data = config.proxy, config.data
    if config.chameleon.source == "model":
        key, place = "checkpoint.pretrained_checkpoint", config.checkpoint.pretrained_checkpoint
        assert place is not None, "checks.check_mixture sees to it"
        return megatron_source(key, place, config, data, prefix="")
    if wanted.hf is not None:
        if data.tokenizer is None:
            raise UserError("proxy.hf needs data.tokenizer, to know that the domains are its own")
        dtype = parallel.precision(wanted.train.precision)
        return transformers_source(wanted.hf, dtype, data.tokenizer)
    assert wanted.load is not None
    return megatron_source("proxy.load", wanted.load, wanted, data)


def _trained(config: Config, domains: Mapping[str, Domain]) -> tuple[Source, dict[str, Any]]:
    """Train the proxy, or go on with it; and facts about that."""
    job = job_of(config, domains)
    result = training.train(job)
    path = parallel.on_first_rank(lambda: checkpoint.newest(job.directory))
    assert path is not None, "training.train leaves a checkpoint"
    vocab_size = datasets.Vocabulary.of(config.data).vocab_size
    facts = {key: result[key] for key in ("loss", "parameters", "tokens")}
    return MegatronSource(path, config.proxy, vocab_size), facts


def embedding_method(config: Config) -> dict[str, Any]:
    """The settings that decide the embeddings, as a mixture file records them."""
    wanted = config.chameleon
    num_layers, seq_length = config.proxy.model.num_layers, config.proxy.model.seq_length
    if not trains(config):
        source = existing(config)
        num_layers, seq_length = source.num_layers, min(seq_length, source.seq_length)
    if wanted.source == "model":
        seq_length = config.model.seq_length
    settings: dict[str, Any] = {
        "layer": wanted.layer if isinstance(wanted.layer, int) else middle_layer(num_layers),
        "samples": wanted.samples,
        "sample_length": wanted.sample_length or seq_length,
        "seed": wanted.seed,
        "cross_documents": wanted.cross_documents,
    }
    if config.data.dataset == SFT:
        settings["tokens"] = wanted.tokens
    return settings | ({"tolerance": wanted.tolerance} if wanted.samples == AUTO else {})


def _layers(config: Config) -> tuple[int, ...]:
    """Whose outputs are averaged; the first is the one that the weights are computed from."""
    chosen: int = embedding_method(config)["layer"]
    if config.chameleon.layer != ALL:
        return (chosen,)
    count = config.proxy.model.num_layers if trains(config) else existing(config).num_layers
    return (chosen, *(layer for layer in range(1, count + 1) if layer != chosen))


def job_of(config: Config, domains: Mapping[str, Domain]) -> Job:
    """The proxy's training: its part of the configuration on a uniform mixture.

    Examples that fit the base model's samples may be longer than the proxy's: it trains on their
    ends, whatever the base model does.
    """
    if config.data.dataset == SFT:
        config = replace(config, data=replace(config.data, on_too_long="truncate"))
        domains = shortened(domains)
    return Job("proxy", config.proxy, config, domains, Mixture.uniform(domains))


def settings_digest(config: Config, domains: Mapping[str, Domain]) -> str:
    """Of what a run's configuration asks of a proxy.

    Not of the machine: a mixture may be used on another one. Nor of the domains: a proxy embeds
    others than it was trained on, and a mixture knows the data of its own.
    """
    if not trains(config):
        return digest({"proxy": existing(config).identity, "data.split": config.data.split})
    of_others = ["train.precision", "optimizer.use_distributed_optimizer"]
    of_others += ["data.domains", "weights"]
    identity = job_of(config, domains).identity()
    return digest({key: value for key, value in identity.items() if key not in of_others})


def embed_new(
    computed: Computed,
    paths: Mapping[str, str],
    checkpoints: Sequence[str] = (),
    micro_batch_size: int | None = None,
) -> tuple[list[dict[str, Shards]], dict[str, dict[str, Any]]]:
    """Embed domains with the proxies of a computed mixture, from windows as its own are.

    Every rank must call it, within `parallel.processes` and outside of any layout; the windows are
    shared out over all ranks.

    Args:
        computed: the mixture.
        paths: of the new domains, by name, as the configuration has them.
        checkpoints: where its proxies lie, if no longer where it says.
        micro_batch_size: windows a rank embeds at once; None: as suits its device.

    Returns:
        Embeddings of the new domains for each proxy, and facts about them by name.

    Raises:
        UserError: a proxy that is not there or is another one, a domain that the mixture has, or as
            `Domain.open`.
    """
    method = computed.mixture.method
    samples = max(int(facts["samples"]) for facts in computed.facts.values())
    wanted = {name: DomainConfig(path=path) for name, path in paths.items()}
    places: list[str | None] = list(checkpoints) or [None] * len(computed.proxies)
    if len(places) != len(computed.proxies):
        raise UserError(f"the mixture is of {len(computed.proxies)} proxies: name each checkpoint")
    for name in paths:
        computed.refuse_known(name)
    embeddings = []
    for place, record in zip(places, computed.proxies, strict=True):
        source = source_from_record(record, place)
        domains = _opened_as(record, wanted, method)
        for name, domain in domains.items():
            computed.refuse_known(name, domain.fingerprint)
        keys = ("sample_length", "seed", "cross_documents")
        windows = Windows((method["layer"],), **{key: method[key] for key in keys})
        with source.opened() as extractor:
            sampler = Sampler(
                extractor, windows, micro_batch_size=micro_batch_size, model=source.identity
            )
            embeddings += sampler.draw(domains, samples)
    return embeddings, {
        name: {**domain.facts(), "samples": samples} for name, domain in domains.items()
    }


def _opened_as(
    record: Mapping[str, Any], wanted: dict[str, DomainConfig], method: Mapping[str, Any]
) -> dict[str, Domain]:
    """New domains, read as a mixture's own were.

    Raises:
        UserError: as `datasets.open_domains`, or they would be tokenised otherwise.
    """
    data = DataConfig(domains=wanted, split=str(record.get("split")))
    if "sft" not in record:
        data.vocab_size = record.get("vocab_size")
        return datasets.open_domains(data, 0)
    data.dataset, data.tokenizer = SFT, record["tokenizer"]
    for key in _SFT:
        setattr(data, key, record["sft"][key])
    if Reader(data).identity != record["sft"]["reader"]:
        raise UserError(
            f"{data.tokenizer} or the chat template is not what the mixture's domains were read "
            "with"
        )
    answers_alone = method["tokens"] == "answers"
    return datasets.open_domains(data, record["sft"]["seq_length"], answers_alone=answers_alone)


def _embed(
    config: Config, domains: Mapping[str, Domain], source: Source
) -> tuple[Sampler, list[dict[str, Shards]], dict[str, int]]:
    """For each wanted layer the embeddings, and how many windows each is of, by domain."""
    wanted, settings = config.chameleon, embedding_method(config)
    windows = Windows(
        _layers(config), settings["sample_length"], wanted.seed, wanted.cross_documents
    )
    with source.opened() as extractor:
        sampler = Sampler(
            extractor,
            windows,
            micro_batch_size=wanted.micro_batch_size,
            model=f"{source.identity} {source.record()['precision']}",
            folder=_kept(config),
            progress=config.logging.progress,
        )
        if isinstance(wanted.samples, int):
            drawn = sampler.draw(domains, wanted.samples)
            return sampler, drawn, dict.fromkeys(domains, wanted.samples)

        def half_width(embeddings: Mapping[str, Shards]) -> float:
            preset = preset_of(wanted)
            errors = scoring.errors_of([embeddings], list(domains), wanted.objective, preset)
            assert errors is not None
            return float(errors.half_widths().max())

        return sampler, *draw_until_known(sampler, domains, wanted.tolerance, half_width)


def _kept(config: Config) -> Path:
    """Where finished draws wait for the mixture file."""
    file = Path(config.chameleon.file)
    return file.with_name(f"{file.stem}.partial")
