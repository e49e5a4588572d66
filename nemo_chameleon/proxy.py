"""The proxy: a small GPT trained on uniform weights, and the mixture computed through it.

The proxy is not special: it is `training.train` with a small model and a uniform mixture. It can
be killed and started again at any point; what is finished is not done twice.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from nemo_chameleon import checkpoint, datasets, embedding, leverage, model, parallel, training
from nemo_chameleon.caveats import caveats
from nemo_chameleon.config import preset_of
from nemo_chameleon.console import progress_bar
from nemo_chameleon.domains import Domain
from nemo_chameleon.errors import UserError
from nemo_chameleon.files import write_atomically
from nemo_chameleon.mixture import Mixture
from nemo_chameleon.schema import Config


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
    embeddings = _embed(config, domains, trained)

    def write() -> str:
        proxy = {
            "checkpoint": str(trained),
            "loss": result["loss"],
            "parameters": result["parameters"],
            "tokens": result["tokens"],
            "tokenizer": config.data.tokenizer,
            "settings": settings_digest(job),
        }
        mixture = mixture_from_embeddings(config, domains, embeddings, proxy)
        try:
            save_embeddings(embeddings_file(config), embeddings)
            mixture.save(config.chameleon.file)
        except OSError as error:
            raise UserError(f"cannot write chameleon.file: {error}") from error
        return mixture.to_json()

    mixture = Mixture.from_json(parallel.on_first_rank(write), config.chameleon.file)
    parallel.say(f"weights written to {config.chameleon.file}")
    if mixture.method["tempering"] < 1:
        parallel.say(
            "note: the weights were tempered, or they would have been less spread out than "
            "chameleon.min_effective"
        )
    for caveat in mixture.method["caveats"]:
        parallel.say(f"note: {caveat}")
    return mixture


def mixture_from_embeddings(
    config: Config,
    domains: Mapping[str, Domain],
    embeddings: Mapping[str, NDArray[np.float32]],
    proxy: Mapping[str, Any],
) -> Mixture:
    """Embeddings (d,) by name to a Mixture with the configured objective and preset."""
    wanted = config.chameleon
    preset = preset_of(wanted)
    names = list(domains)
    x = np.stack([embeddings[name] for name in names])
    try:
        scores = leverage.leverage_scores(
            x,
            ridge=preset.ridge,
            relative_ridge=preset.relative_ridge,
        )
        weights, tempering = leverage.tempered_weights(scores, wanted.objective, preset)
    except ValueError as error:
        raise UserError(f"no weights from these embeddings: {error}") from error
    return Mixture(
        weights=dict(zip(names, weights.tolist(), strict=True)),
        objective=wanted.objective,
        domains={
            name: {
                "path": domains[name].path,
                "tokens": domains[name].tokens,
                "fingerprint": domains[name].fingerprint,
                "score": score,
            }
            for name, score in zip(names, scores.tolist(), strict=True)
        },
        method={
            "name": "chameleon",
            **method(config),
            "tempering": tempering,
            "caveats": caveats(names, x, scores, weights),
        },
        proxy=dict(proxy),
        created=training.created(),
    )


def method(config: Config) -> dict[str, Any]:
    """The settings that decide the weights, as a mixture file records them."""
    wanted = config.chameleon
    preset = preset_of(wanted)
    return {
        "preset": wanted.preset,
        "ridge": preset.relative_ridge if preset.ridge is None else preset.ridge,
        "exponent": preset.exponent,
        "min_effective": preset.min_effective,
        "layer": wanted.layer or embedding.middle_layer(config.proxy.model.num_layers),
        "samples": wanted.samples,
        "sample_length": wanted.sample_length or config.proxy.model.seq_length,
        "seed": wanted.seed,
    }


def job_of(config: Config, domains: Mapping[str, Domain]) -> training.Job:
    """The proxy's training: its part of the configuration on a uniform mixture."""
    return training.Job("proxy", config.proxy, config, domains, Mixture.uniform(domains))


def settings_digest(job: training.Job) -> str:
    """Of all that the trained proxy follows from: settings, data, split and tokenizer."""
    identity = job.identity()
    # Of the machine rather than of the proxy: a mixture may be used on another one.
    for key in ("train.precision", "optimizer.use_distributed_optimizer"):
        del identity[key]
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def embeddings_file(config: Config) -> Path:
    """Where the embeddings lie: beside the mixture file, under its name."""
    return Path(config.chameleon.file).with_suffix(".safetensors")


def save_embeddings(path: Path, embeddings: Mapping[str, NDArray[np.float32]]) -> None:
    """Write embeddings (d,) by name, in one step."""
    write_atomically(path, save(dict(embeddings)))


def load_embeddings(path: Path) -> dict[str, NDArray[np.float32]]:
    """Read embeddings (d,) by name."""
    return dict(load_file(str(path)))


def _embed(
    config: Config, domains: Mapping[str, Domain], trained: Path
) -> dict[str, NDArray[np.float32]]:
    wanted = config.chameleon
    with parallel.layout(config.proxy.parallel, wanted.seed):
        vocabulary = datasets.Vocabulary.of(config.data)
        gpt = model.build(config.proxy, vocabulary.vocab_size, for_training=False)
        checkpoint.load(trained, gpt)
        settings = method(config)
        with progress_bar(
            desc="embedding",
            unit=" tokens",
            unit_scale=True,
            disable=not (parallel.is_first_rank() and config.logging.progress),
        ) as bar:
            embeddings = embedding.embed(
                gpt,
                domains,
                layer=settings["layer"],
                samples=wanted.samples,
                sample_length=settings["sample_length"],
                micro_batch_size=wanted.micro_batch_size,
                seed=wanted.seed,
                advance=bar.update,
            )
    return embeddings
