"""Each method's weights, what they cost, and the checks that its paper gives."""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.mixtures import cost, online, regmix
from benchmarks.mixtures.size import Size
from nemo_chameleon import Mixture, checkpoint, parallel, provider, proxy, training
from nemo_chameleon.changes import Computed
from nemo_chameleon.datasets import Vocabulary
from nemo_chameleon.domains import Domain
from nemo_chameleon.errors import UserError
from nemo_chameleon.schema import Config
from nemo_chameleon.weights import effective_domains

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a method has to go by."""

    size: Size
    seed: int
    config: Config
    domains: dict[str, Domain]

    @property
    def training_cost(self) -> float:
        """Operations of one proxy's training."""
        run = self.config.proxy
        tokens = run.train.samples * run.model.seq_length
        return tokens * cost.training(run.model, self.vocab_size)

    @property
    def vocab_size(self) -> int:
        """Of the tokenizer."""
        return Vocabulary.of(self.config.data).vocab_size

    @property
    def mixture_file(self) -> Path:
        """Chameleon's."""
        return self.size.folder / f"seed{self.seed}" / "chameleon" / "mixture.json"

    def job(self, name: str, run: Any = None, mixture: Mixture | None = None) -> training.Job:
        """A proxy's training."""
        weights = mixture or Mixture.uniform(self.domains)
        return training.Job(name, run or self.config.proxy, self.config, self.domains, weights)


def chameleon(setting: Setting) -> Record:
    """The product's, with its defaults."""
    started = time.monotonic()
    mixture = provider.resolve_mixture(setting.config, setting.domains)
    seconds = time.monotonic() - started
    return {
        "weights": mixture.weights,
        "operations": setting.training_cost
        + _embedding_cost(setting, mixture, len(setting.domains)),
        "seconds": seconds,
        "proxy": training_seconds(setting),
        "scores": {name: facts["score"] for name, facts in mixture.domains.items()},
        "intervals": mixture.uncertainty,
        "effective": effective_domains(list(mixture.weights.values())),
    }


def training_seconds(setting: Setting) -> float:
    """Of Chameleon's proxy."""
    job = proxy.job_of(setting.config, setting.domains)
    path = checkpoint.newest(job.directory)
    assert path is not None
    return float(checkpoint.read_state(path)["seconds"])


def paper(setting: Setting) -> Record:
    """The same embeddings weighed by the published formula."""
    return rescored(setting, preset="paper")


def rescored(setting: Setting, **settings: Any) -> Record:
    """Chameleon's embeddings weighed otherwise; costs what they cost."""
    changed = Computed.load(setting.mixture_file).rescored("pretrain", **settings)
    return {"weights": changed.mixture.weights, "same cost as": "chameleon"}


def added(setting: Setting) -> Record:
    """Every other domain first; the rest by their embeddings through the proxy of those alone."""
    size, first = setting.size, setting.size.domains[::2]
    config = size.configured(setting.seed, "half", "chameleon", first)
    provider.resolve_mixture(config)
    before, started = Computed.load(config.chameleon.file), time.monotonic()
    new = {name: size.training_path(name) for name in size.domains if name not in first}
    after = before.with_domains(*proxy.embed_new(before, new)).mixture
    return {
        "weights": {name: after.weights[name] for name in size.domains},
        "operations": _embedding_cost(setting, after, len(new)),
        "seconds": time.monotonic() - started,
        "first": first,
    }


def _embedding_cost(setting: Setting, mixture: Mixture, domains: int) -> float:
    tokens = mixture.method["samples"] * mixture.method["sample_length"] * domains
    layer = mixture.method["layer"]
    return tokens * cost.forward(setting.config.proxy.model, setting.vocab_size, layer)


def control(setting: Setting) -> Record:
    """As heavy as Chameleon in the domain that it favours most, equal in all others."""
    weights = Mixture.load(setting.mixture_file).weights
    top = max(weights, key=lambda name: weights[name])
    others = (1 - weights[top]) / (len(weights) - 1)
    return {
        "weights": {name: weights[top] if name == top else others for name in weights},
        "operations": 0.0,
        "seconds": 0.0,
        "heavy": top,
    }


def uniform(setting: Setting) -> Record:
    """Equal weights."""
    return {"weights": Mixture.uniform(setting.domains).weights, "operations": 0.0, "seconds": 0.0}


def proportional(setting: Setting) -> Record:
    """To tokens."""
    tokens = {name: domain.tokens for name, domain in setting.domains.items()}
    return {"weights": Mixture.proportional(tokens).weights, "operations": 0.0, "seconds": 0.0}


def doremi(setting: Setting) -> Record:
    """Its reference is Chameleon's proxy, trained on the same uniform weights, and counted."""
    folder = proxy.job_of(setting.config, setting.domains).directory
    reference = checkpoint.newest(folder)
    assert reference is not None, "run starts this when Chameleon's proxy is there"
    started = time.monotonic()
    state = online.doremi(setting.job("doremi"), reference, setting.vocab_size)
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
    """One proxy, whose gradients are taken by domain."""
    started = time.monotonic()
    job = setting.job("doge")
    with parallel.layout(job.run.parallel, job.run.train.seed):
        state = online.DoGE(job)
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
    """RegMix: many short runs of the proxy."""
    wanted, names = setting.size.regmix, list(setting.domains)
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
        result = training.train(setting.job(f"regmix{i}", run, mixture))
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
            "rank correlation on held-out mixtures": online.spearman(predict(x[fit:]), y[fit:]),
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
    "control": control,
    "doremi": doremi,
    "doge": doge,
    "regmix": regression,
}
# Those that read what Chameleon's run of the same seed left.
_AFTER_CHAMELEON = ("chameleon-paper", "control", "doremi")
_VARIANT = "chameleon:"


def after_chameleon(name: str) -> bool:
    """Whether a method needs Chameleon's proxy, or its embeddings, of the same seed."""
    return name in _AFTER_CHAMELEON or name.startswith(_VARIANT)


def method_called(name: str) -> Callable[[Setting], Record]:
    """A method by its name; `chameleon:exponent=0.5,ridge=1` is Chameleon with other settings.

    Raises:
        UserError: there is none.
    """
    if name.startswith(_VARIANT):
        pairs = [pair.partition("=") for pair in name.removeprefix(_VARIANT).split(",")]
        settings: dict[str, Any] = {
            key: value if key == "preset" else float(value) for key, _, value in pairs
        }
        return partial(rescored, **settings)
    if name not in _METHODS:
        raise UserError(f"{name!r} is none of the methods {', '.join(_METHODS)}")
    return _METHODS[name]
