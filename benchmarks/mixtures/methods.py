"""Compute each method's weights, their cost, and the checks that the method's paper gives."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks.mixtures import cost, online, regmix
from benchmarks.mixtures.size import Size
from nemo_chameleon import Mixture, provider
from nemo_chameleon.config.schema import Config, ModelConfig
from nemo_chameleon.data.domain import Domain
from nemo_chameleon.data.vocabulary import Vocabulary
from nemo_chameleon.distributed.layout import model_parallel
from nemo_chameleon.method.weights import effective_domains
from nemo_chameleon.mixture.edit import ComputedMixture, averaged
from nemo_chameleon.mixture.mixture import UNRECORDED
from nemo_chameleon.models import tracker
from nemo_chameleon.provider.new_domains import embed_new
from nemo_chameleon.provider.runs import proxy_run
from nemo_chameleon.train import trainer
from nemo_chameleon.train.run import TrainingRun
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.huggingface import from_pretrained

Record = dict[str, Any]
MODELS = Path("build")
"""Where `chameleon:proxy.hf=smollm2` finds the model that `make test-real` puts there."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """The inputs of a method.

    Attributes:
        size: the size of the benchmark.
        seed: seed of the proxies, the windows and the base model.
        config: the product's configuration for this size and seed.
        domains: the opened domains, by name.
    """

    size: Size
    seed: int
    config: Config
    domains: dict[str, Domain]

    @property
    def training_cost(self) -> float:
        """The operations of training one proxy; none where a finished model embeds."""
        run = self.config.proxy
        tokens = run.train.samples * run.model.seq_length
        if self.size.start is not None or run.hf is not None:
            return 0.0
        return tokens * cost.training(run.model, self.vocab_size)

    @property
    def embedder(self) -> ModelConfig:
        """The model that embeds the domains."""
        if (name := self.config.proxy.hf) is not None:
            return _shape(name)
        return self.config.model if self.size.start is not None else self.config.proxy.model

    @property
    def vocab_size(self) -> int:
        """The number of tokens in the tokenizer's vocabulary."""
        return Vocabulary.of(self.config.data).vocab_size

    @property
    def mixture_file(self) -> Path:
        """Chameleon's mixture file."""
        return self.size.folder / f"seed{self.seed}" / "chameleon" / "mixture.json"

    def run(self, name: str, settings: Any = None, mixture: Mixture | None = None) -> TrainingRun:
        """Return the training run of a proxy, by default on uniform weights."""
        weights = mixture or Mixture.uniform(self.domains)
        return TrainingRun(name, settings or self.config.proxy, self.config, self.domains, weights)


def _shape(name: str) -> ModelConfig:
    """Return the shape of a Llama-like model of Hugging Face's."""
    read = from_pretrained("AutoConfig", name)
    return ModelConfig(
        num_layers=read.num_hidden_layers,
        hidden_size=read.hidden_size,
        num_attention_heads=read.num_attention_heads,
        num_query_groups=read.num_key_value_heads,
        ffn_hidden_size=read.intermediate_size,
    )


def chameleon(setting: Setting) -> Record:
    """Compute Chameleon's weights with the product's defaults."""
    started = time.monotonic()
    mixture = provider.resolve_mixture(setting.config, setting.domains)
    return {
        "weights": mixture.weights,
        "operations": setting.training_cost
        + _embedding_cost(setting, mixture, len(setting.domains)),
        "seconds": time.monotonic() - started,
        "settings": {
            **ComputedMixture.load(setting.config.chameleon.file).preset().settings(),
            "normalize_states": {**UNRECORDED, **mixture.method}["normalize_states"],
        },
        "scores": {name: facts["score"] for name, facts in mixture.domains.items()},
        "intervals": mixture.uncertainty,
        "effective": effective_domains(list(mixture.weights.values())),
    }


def training_seconds(setting: Setting) -> float:
    """Return the seconds that Chameleon's proxy trained; none where a finished model embeds."""
    if setting.size.start is not None:
        return 0.0
    run = proxy_run(setting.config, setting.domains)
    path = tracker.newest(run.directory)
    assert path is not None
    return float(tracker.read_state(path)["seconds"])


def paper(setting: Setting) -> Record:
    """Compute weights by the published formula, from embeddings as published."""
    raw = {"normalize_states": "false", "cross_documents": "false"}
    return variant(setting, {"preset": "paper", **raw})


def variant(setting: Setting, settings: Mapping[str, str]) -> Record:
    """Compute Chameleon's weights with other settings, from existing embeddings where possible.

    Args:
        setting: the inputs.
        settings: settings of the scores and weights, other keys under `chameleon`, dotted keys of
            the configuration (those of the proxy, too), `proxies`, the number of proxies to
            average, and `uniform`, the share of uniform weights in the result.
    """
    rescoring: dict[str, Any] = {
        key: value if key in ("preset", "objective") else float(value)
        for key, value in settings.items()
        if key in _RESCORING
    }
    other = {key: value for key, value in settings.items() if key not in _RESCORING}
    proxies, equal = int(other.pop("proxies", 1)), float(other.pop("uniform", 0.0))
    if "proxy.hf" in other:
        other["proxy.hf"] = str(MODELS / other["proxy.hf"])
    own = [f"{key if '.' in key else f'chameleon.{key}'}={value}" for key, value in other.items()]
    parts, operations, seconds = [], 0.0, 0.0
    for i in range(proxies):
        # The benchmark itself has no seed of a thousand or more.
        seed = [f"proxy.train.seed={1000 * i + setting.seed}"] if i else []
        computed, of_this, of_this_in_seconds = _computed(setting, [*own, *seed])
        parts.append(computed)
        operations += of_this
        seconds += of_this_in_seconds
    whole = parts[0] if proxies == 1 else averaged(parts)
    rescored = whole.rescored(**rescoring).mixture.weights
    record: Record = {
        "weights": {n: equal / len(rescored) + (1 - equal) * w for n, w in rescored.items()}
    }
    if not other and proxies == 1:
        return record | {"same cost as": "chameleon"}
    return record | {"operations": operations, "seconds": seconds}


def _computed(setting: Setting, overrides: list[str]) -> tuple[ComputedMixture, float, float]:
    """Compute a mixture with other settings, its operations and its seconds, proxy included."""
    started = time.monotonic()
    name = ",".join(overrides).replace("/", "_")
    own_proxy = any(override.startswith("proxy.") for override in overrides)
    folder = f"chameleon:{name}" if own_proxy else "chameleon"
    config = setting.size.configured(setting.seed, folder, "chameleon", (), overrides)
    if overrides and not own_proxy:
        config.chameleon.file = str(Path(config.output) / f"{name}.json")
    mixture = provider.resolve_mixture(config)
    changed = dataclasses.replace(setting, config=config)
    operations = changed.training_cost + _embedding_cost(changed, mixture, len(setting.domains))
    seconds = time.monotonic() - started + (0 if own_proxy else training_seconds(setting))
    return ComputedMixture.load(config.chameleon.file), operations, seconds


def added(setting: Setting) -> Record:
    """Mix every other domain first, then add the rest with the proxy of the first ones."""
    size, first = setting.size, setting.size.domains[::2]
    config = size.configured(setting.seed, "half", "chameleon", first)
    provider.resolve_mixture(config)
    before, started = ComputedMixture.load(config.chameleon.file), time.monotonic()
    new = {name: size.training_path(name) for name in size.domains if name not in first}
    after = before.with_domains(*embed_new(before, new)).mixture
    return {
        "weights": {name: after.weights[name] for name in size.domains},
        "operations": _embedding_cost(setting, after, len(new)),
        "seconds": time.monotonic() - started,
        "first": first,
    }


def _embedding_cost(setting: Setting, mixture: Mixture, domains: int) -> float:
    tokens = int(mixture.method["samples"] * mixture.method["sample_length"] * domains)
    layer = mixture.method["layer"]
    return tokens * cost.forward(setting.embedder, setting.vocab_size, layer)


def uniform(setting: Setting) -> Record:
    """Return equal weights."""
    return {"weights": Mixture.uniform(setting.domains).weights, "operations": 0.0, "seconds": 0.0}


def proportional(setting: Setting) -> Record:
    """Return weights in proportion to the domains' tokens."""
    tokens = {name: domain.tokens for name, domain in setting.domains.items()}
    return {"weights": Mixture.proportional(tokens).weights, "operations": 0.0, "seconds": 0.0}


def doremi(setting: Setting) -> Record:
    """Compute DoReMi's weights.

    The reference model is Chameleon's proxy, which is also trained on uniform weights. It counts
    towards DoReMi's cost all the same.
    """
    folder = proxy_run(setting.config, setting.domains).directory
    reference = tracker.newest(folder)
    assert reference is not None, "run.py starts DoReMi only when Chameleon's proxy is trained"
    started = time.monotonic()
    state = online.doremi(setting.run("doremi"), reference, setting.vocab_size)
    seconds = time.monotonic() - started
    run, tenth = setting.config.proxy, max(1, len(state.excess) // 10)
    tokens = run.train.samples * run.model.seq_length
    first, last = (np.mean(part, axis=0) for part in (state.excess[:tenth], state.excess[-tenth:]))
    return {
        "weights": state.average,
        "operations": 2 * setting.training_cost
        + tokens * cost.forward(run.model, setting.vocab_size),
        "seconds": seconds + training_seconds(setting),
        "check": {
            "largest excess loss, first tenth": float(first.max()),
            "largest excess loss, last tenth": float(last.max()),
        },
    }


def doge(setting: Setting) -> Record:
    """Compute DoGE's weights, with one proxy whose gradients are taken domain by domain."""
    started = time.monotonic()
    run = setting.run("doge")
    with model_parallel(run.settings.parallel, run.settings.train.seed):
        state = online.DoGE(run)
        state.complete()
        seconds = time.monotonic() - started
        correlation = state.checked()
    return {
        "weights": state.average,
        "operations": setting.training_cost,
        "seconds": seconds,
        "check": {"rank correlation of alignment with the loss that a step saves": correlation},
    }


def regression(setting: Setting) -> Record:
    """Compute RegMix's weights from many short runs of the proxy.

    Raises:
        UserError: the size does not say how many runs.
    """
    wanted, names = setting.size.regmix, list(setting.domains)
    if wanted is None:
        raise UserError(f"sizes/{setting.size.name}.yaml must set regmix, the runs of that method")
    tokens = np.array([domain.tokens for domain in setting.domains.values()], dtype=float)
    generator = np.random.default_rng(setting.seed)
    x = regmix.mixtures(tokens, wanted.fit + wanted.held_out, generator)
    run = dataclasses.replace(setting.config.proxy)
    run.train = dataclasses.replace(
        run.train, train_iters=wanted.train_iters, eval_iters=wanted.eval_iters
    )
    run.optimizer = dataclasses.replace(
        run.optimizer,
        lr_warmup_iters=min(run.optimizer.lr_warmup_iters, wanted.train_iters // 5),
    )
    started, losses, by_domain = time.monotonic(), [], []
    for i, weights in enumerate(x):
        mixture = Mixture.static(dict(zip(names, weights.tolist(), strict=True)))
        result = trainer.train(setting.run(f"regmix{i}", run, mixture))
        losses.append(result["macro"]["loss"])
        by_domain.append([round(result["domains"][name]["loss"], 4) for name in names])
    y, fit = np.array(losses), wanted.fit
    weights, predict, name = regmix.best(x[:fit], y[:fit], tokens, setting.seed)
    each = run.train.samples * run.model.seq_length
    return {
        "weights": dict(zip(names, weights.tolist(), strict=True)),
        "operations": len(x) * each * cost.training(run.model, setting.vocab_size),
        "seconds": time.monotonic() - started,
        "check": {
            "regression": name,
            "rank correlation on held-out mixtures": float(
                spearmanr(predict(x[fit:]), y[fit:]).statistic
            ),
        },
        "mixtures": x.round(4).tolist(),
        "losses": by_domain,
    }


_METHODS: dict[str, Callable[[Setting], Record]] = {
    "uniform": uniform,
    "proportional": proportional,
    "chameleon": chameleon,
    "chameleon-paper": paper,
    "chameleon-added": added,
    "doremi": doremi,
    "doge": doge,
    "regmix": regression,
}
# Methods that read files of Chameleon's run with the same seed.
_AFTER_CHAMELEON = ("chameleon-paper", "doremi")
_VARIANT = "chameleon:"
_RESCORING = ("objective", "preset", "ridge", "exponent", "min_effective")


def after_chameleon(name: str) -> bool:
    """Return whether a method needs Chameleon's proxy or embeddings of the same seed."""
    return name in _AFTER_CHAMELEON or name.startswith(_VARIANT)


def method_called(name: str) -> Callable[[Setting], Record]:
    """Return a method by its name; `chameleon:exponent=0.5,layer=1` is Chameleon with settings.

    Raises:
        UserError: no method has this name.
    """
    if name.startswith(_VARIANT):
        pairs = [pair.partition("=") for pair in name.removeprefix(_VARIANT).split(",")]
        return partial(variant, settings={key: value for key, _, value in pairs})
    if name not in _METHODS:
        raise UserError(f"unknown method {name!r}; the methods are {', '.join(_METHODS)}")
    return _METHODS[name]
