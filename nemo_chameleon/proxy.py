"""The proxy: a small GPT trained on uniform weights, and the mixture computed through it.

The proxy is not special: it is `training.train` with a small model and a uniform mixture. It can
be killed and started again at any point; what is finished is not done twice.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nemo_chameleon import checkpoint, datasets, model, parallel, scoring, training
from nemo_chameleon.changes import Computed
from nemo_chameleon.config import preset_of
from nemo_chameleon.domains import Domain, open_domains
from nemo_chameleon.embedding import Extractor, middle_layer
from nemo_chameleon.errors import UserError
from nemo_chameleon.extractors import megatron_extractor
from nemo_chameleon.mixture import Mixture, created
from nemo_chameleon.report import layers_table
from nemo_chameleon.sampling import Sampler, Windows, draw_until_known, forget
from nemo_chameleon.schema import (
    ALL,
    AUTO,
    ChameleonConfig,
    Config,
    DomainConfig,
    ModelConfig,
    Run,
)
from nemo_chameleon.shards import Shards, embeddings_file, save_embeddings


def compute_mixture(config: Config, domains: Mapping[str, Domain]) -> Mixture:
    """Train the proxy, embed the domains, compute their weights; every rank must call it.

    Writes the mixture file, and the embeddings beside it as safetensors.

    Returns:
        The mixture, equal to the last bit on every rank.
    """
    job = job_of(config, domains)
    result = training.train(job)
    trained = parallel.on_first_rank(lambda: checkpoint.newest(job.directory))
    assert trained is not None, "training.train leaves a checkpoint"
    by_layer, samples = _embed(config, domains, trained)
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
                "checkpoint": str(trained),
                "loss": result["loss"],
                "parameters": result["parameters"],
                "tokens": result["tokens"],
                "tokenizer": config.data.tokenizer,
                "settings": settings_digest(job.identity()),
                "trained": trained_digest(job.identity()),
            },
            created=created(),
        )
        text = mixture.to_json()
        save_embeddings(embeddings_file(config.chameleon.file), [embeddings])
        mixture.save(config.chameleon.file)
        forget(_kept(config))
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


def embedding_method(config: Config) -> dict[str, Any]:
    """The settings that decide the embeddings, as a mixture file records them."""
    wanted = config.chameleon
    settings = {
        "layer": (
            wanted.layer
            if isinstance(wanted.layer, int)
            else middle_layer(config.proxy.model.num_layers)
        ),
        "samples": wanted.samples,
        "sample_length": wanted.sample_length or config.proxy.model.seq_length,
        "seed": wanted.seed,
    }
    return settings | ({"tolerance": wanted.tolerance} if wanted.samples == AUTO else {})


def _layers(config: Config) -> tuple[int, ...]:
    """Whose outputs are averaged; the first is the one that the weights are computed from."""
    chosen: int = embedding_method(config)["layer"]
    others = range(1, config.proxy.model.num_layers + 1) if config.chameleon.layer == ALL else ()
    return (chosen, *(layer for layer in others if layer != chosen))


def job_of(config: Config, domains: Mapping[str, Domain]) -> training.Job:
    """The proxy's training: its part of the configuration on a uniform mixture."""
    return training.Job("proxy", config.proxy, config, domains, Mixture.uniform(domains))


def trained_digest(identity: Mapping[str, Any]) -> str:
    """Of all that a trained proxy follows from: settings, data, split and tokenizer."""
    return _digest(identity)


def settings_digest(identity: Mapping[str, Any]) -> str:
    """Of what a run's configuration asks of a proxy.

    Not of the machine: a mixture may be used on another one. Nor of the domains: a proxy embeds
    others than it was trained on, and a mixture knows the data of its own.
    """
    of_others = (
        "train.precision",
        "optimizer.use_distributed_optimizer",
        "data.domains",
        "weights",
    )
    return _digest({key: value for key, value in identity.items() if key not in of_others})


def _digest(identity: Mapping[str, Any]) -> str:
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def embed_new(
    computed: Computed,
    paths: Mapping[str, str],
    checkpoints: Sequence[str] = (),
    micro_batch_size: int = ChameleonConfig.micro_batch_size,
) -> tuple[list[dict[str, Shards]], dict[str, dict[str, Any]]]:
    """Embed domains with the proxies of a computed mixture, from windows as its own are.

    Every rank must call it, within `parallel.processes` and outside of any layout; the windows are
    shared out over all ranks.

    Args:
        computed: the mixture.
        paths: prefixes of the new domains, by name.
        checkpoints: where its proxies lie, if no longer where it says.
        micro_batch_size: windows a rank embeds at once.

    Returns:
        Embeddings of the new domains for each proxy, and facts about them by name.

    Raises:
        UserError: a proxy that is not there or is another one, a domain that the mixture has, or as
            `Domain.open`.
    """
    method = computed.mixture.method
    samples = max(int(facts["samples"]) for facts in computed.facts.values())
    wanted = {name: DomainConfig(path=path) for name, path in paths.items()}
    checkpoints = checkpoints or [str(proxy.get("checkpoint")) for proxy in computed.proxies]
    if len(checkpoints) != len(computed.proxies):
        raise UserError(f"the mixture is of {len(computed.proxies)} proxies: name each checkpoint")
    for name in paths:
        computed.refuse_known(name)
    embeddings = []
    for place, proxy in zip(checkpoints, computed.proxies, strict=True):
        path = Path(place)
        if not path.is_dir():
            raise UserError(f"the proxy's checkpoint {path} is not there; name it with --proxy")
        identity = checkpoint.read_state(path)["identity"]
        trained = trained_digest(identity)
        if trained != proxy.get("trained"):
            raise UserError(f"{path} is not the proxy that the mixture was computed through")
        vocab_size = identity["vocabulary size"]
        domains = open_domains(wanted, identity["data.split"], vocab_size)
        for name, domain in domains.items():
            computed.refuse_known(name, domain.fingerprint)
        shape = {
            key.removeprefix("model."): value
            for key, value in identity.items()
            if key.startswith("model.")
        }
        run = Run(model=ModelConfig(**shape))
        run.train.precision = _precision(identity)
        windows = Windows((method["layer"],), method["sample_length"], method["seed"])
        with loaded(run, vocab_size, path) as extractor:
            sampler = Sampler(extractor, windows, micro_batch_size=micro_batch_size, model=trained)
            embeddings += sampler.draw(domains, samples)
    return embeddings, {
        name: {**domain.facts(), "samples": samples} for name, domain in domains.items()
    }


@contextlib.contextmanager
def loaded(run: Run, vocab_size: int, trained: Path, seed: int = 0) -> Iterator[Extractor]:
    """A trained model in a layout of its own, to embed with; every rank must enter it."""
    with parallel.layout(run.parallel, seed):
        gpt = model.build(run, vocab_size, for_training=False)
        checkpoint.load(trained, gpt)
        with megatron_extractor(gpt) as extractor:
            yield extractor


def _precision(identity: Mapping[str, Any]) -> str:
    """As the mixture's other domains were embedded, where this machine can."""
    recorded = "bf16" if identity["train.precision"] == "torch.bfloat16" else "fp32"
    if recorded == "bf16" and not torch.cuda.is_available():
        parallel.say("note: the other domains were embedded in bf16, these are in fp32")
        return "fp32"
    return recorded


def _embed(
    config: Config, domains: Mapping[str, Domain], trained: Path
) -> tuple[list[dict[str, Shards]], dict[str, int]]:
    """For each wanted layer the embeddings, and how many windows each is of, by domain."""
    wanted, settings = config.chameleon, embedding_method(config)
    vocabulary = datasets.Vocabulary.of(config.data)
    windows = Windows(_layers(config), settings["sample_length"], wanted.seed)
    with loaded(config.proxy, vocabulary.vocab_size, trained) as extractor:
        sampler = Sampler(
            extractor,
            windows,
            micro_batch_size=wanted.micro_batch_size,
            model=trained_digest(checkpoint.read_state(trained)["identity"]),
            folder=_kept(config),
            progress=config.logging.progress,
        )
        if isinstance(wanted.samples, int):
            return sampler.draw(domains, wanted.samples), dict.fromkeys(domains, wanted.samples)

        def half_width(embeddings: Mapping[str, Shards]) -> float:
            preset = preset_of(wanted)
            errors = scoring.errors_of([embeddings], list(domains), wanted.objective, preset)
            assert errors is not None
            return float(errors.half_widths().max())

        return draw_until_known(sampler, domains, wanted.tolerance, half_width)


def _kept(config: Config) -> Path:
    """Where finished draws wait for the mixture file."""
    file = Path(config.chameleon.file)
    return file.with_name(f"{file.stem}.partial")
