"""Each method's weights, what they cost, and the checks that its paper gives."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks.mixtures import cost, forecasts, online, regmix
from benchmarks.mixtures.size import Size
from nemo_chameleon import Mixture, provider
from nemo_chameleon.config.schema import Config, ModelConfig
from nemo_chameleon.data.domain import Domain
from nemo_chameleon.data.vocabulary import Vocabulary
from nemo_chameleon.distributed.layout import model_parallel
from nemo_chameleon.method.leverage import affinity_matrix
from nemo_chameleon.method.weights import effective_domains
from nemo_chameleon.mixture.edit import ComputedMixture, averaged
from nemo_chameleon.models import checkpoint
from nemo_chameleon.provider.new_domains import embed_new
from nemo_chameleon.provider.runs import proxy_run
from nemo_chameleon.train import trainer
from nemo_chameleon.train.run import TrainingRun
from nemo_chameleon.utils.errors import UserError

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
        if self.size.start is not None:
            return 0.0  # the model is there
        return tokens * cost.training(run.model, self.vocab_size)

    @property
    def embedder(self) -> ModelConfig:
        """The model that domains are embedded with."""
        return self.config.model if self.size.start is not None else self.config.proxy.model

    @property
    def vocab_size(self) -> int:
        """Of the tokenizer."""
        return Vocabulary.of(self.config.data).vocab_size

    @property
    def mixture_file(self) -> Path:
        """Chameleon's."""
        return self.size.folder / f"seed{self.seed}" / "chameleon" / "mixture.json"

    def run(self, name: str, settings: Any = None, mixture: Mixture | None = None) -> TrainingRun:
        """A proxy's training."""
        weights = mixture or Mixture.uniform(self.domains)
        return TrainingRun(name, settings or self.config.proxy, self.config, self.domains, weights)


def chameleon(setting: Setting) -> Record:
    """The product's, with its defaults."""
    started = time.monotonic()
    mixture = provider.resolve_mixture(setting.config, setting.domains)
    return {
        "weights": mixture.weights,
        "operations": setting.training_cost
        + _embedding_cost(setting, mixture, len(setting.domains)),
        "seconds": time.monotonic() - started,
        "settings": ComputedMixture.load(setting.config.chameleon.file).preset().settings(),
        "scores": {name: facts["score"] for name, facts in mixture.domains.items()},
        "intervals": mixture.uncertainty,
        "effective": effective_domains(list(mixture.weights.values())),
    }


def training_seconds(setting: Setting) -> float:
    """Of Chameleon's proxy; none where the model is there."""
    if setting.size.start is not None:
        return 0.0
    run = proxy_run(setting.config, setting.domains)
    path = checkpoint.newest(run.directory)
    assert path is not None
    return float(checkpoint.read_state(path)["seconds"])


def paper(setting: Setting) -> Record:
    """The same embeddings weighed by the published formula."""
    return variant(setting, {"preset": "paper"})


def variant(setting: Setting, settings: Mapping[str, str]) -> Record:
    """Chameleon with other settings, as far as possible from the embeddings that are there.

    Args:
        setting: where they are.
        settings: those of the scores and weights; any other key under `chameleon`; dotted keys of
            the configuration, `proxy.` among them; `proxies`, how many to average.
    """
    rescoring: dict[str, Any] = {
        key: value if key in ("preset", "objective") else float(value)
        for key, value in settings.items()
        if key in _RESCORING
    }
    other = {key: value for key, value in settings.items() if key not in _RESCORING}
    proxies = int(other.pop("proxies", 1))
    own = [f"{key if '.' in key else f'chameleon.{key}'}={value}" for key, value in other.items()]
    parts, operations, seconds = [], 0.0, 0.0
    for i in range(proxies):
        # Of other seeds than any that the benchmark has.
        seed = [f"proxy.train.seed={1000 * i + setting.seed}"] if i else []
        computed, of_this, of_this_in_seconds = _computed(setting, [*own, *seed])
        parts.append(computed)
        operations += of_this
        seconds += of_this_in_seconds
    whole = parts[0] if proxies == 1 else averaged(parts)
    record: Record = {"weights": whole.rescored(**rescoring).mixture.weights}
    if not other and proxies == 1:
        return record | {"same cost as": "chameleon"}
    return record | {"operations": operations, "seconds": seconds}


def _computed(setting: Setting, overrides: list[str]) -> tuple[ComputedMixture, float, float]:
    """The mixture through other embeddings, its operations and seconds, the proxy's included."""
    started = time.monotonic()
    name = ",".join(overrides)
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


def forecast(setting: Setting) -> Record:
    """The least mean loss that the loss curves of Chameleon's proxy promise."""
    proxy, names = setting.config.proxy, list(setting.domains)
    computed = ComputedMixture.load(setting.mixture_file)
    embeddings = [computed.embeddings[0][name].embedding for name in names]
    run = setting.run("curves")
    logging = dataclasses.replace(run.config.logging, tensorboard=True, log_interval=5)
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, logging=logging))
    trainer.train(run)
    iterations, losses = forecasts.loss_curves(run.directory, names)
    tokens = iterations * proxy.train.global_batch_size * proxy.model.seq_length
    warm = iterations > proxy.optimizer.lr_warmup_iters
    passed = forecasts.transfer(affinity_matrix(embeddings))
    fitted = forecasts.Forecast.fit(tokens[warm], losses[warm], passed)
    base = setting.config
    aim = base.train.samples * base.model.seq_length
    weights = fitted.best(aim, computed.preset().min_effective)
    return {
        "weights": dict(zip(names, weights.tolist(), strict=True)),
        "same cost as": "chameleon",  # whose run has these curves
        "curves": fitted.curves.tolist(),
        "passed": fitted.passed.tolist(),
    }


def added(setting: Setting) -> Record:
    """Every other domain first; the rest by their embeddings through the proxy of those alone."""
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
    folder = proxy_run(setting.config, setting.domains).directory
    reference = checkpoint.newest(folder)
    assert reference is not None, "run starts this when Chameleon's proxy is there"
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
    """One proxy, whose gradients are taken by domain."""
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
    """RegMix: many short runs of the proxy."""
    wanted, names = setting.size.regmix, list(setting.domains)
    if wanted is None:
        raise UserError(f"SIZE={setting.size.name} does not say how many runs RegMix has")
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
    "chameleon-forecast": forecast,
    "control": control,
    "doremi": doremi,
    "doge": doge,
    "regmix": regression,
}
# Those that read what Chameleon's run of the same seed left.
_AFTER_CHAMELEON = ("chameleon-paper", "chameleon-forecast", "control", "doremi")
_VARIANT = "chameleon:"
_RESCORING = ("objective", "preset", "ridge", "exponent", "min_effective")


def after_chameleon(name: str) -> bool:
    """Whether a method needs Chameleon's proxy, or its embeddings, of the same seed."""
    return name in _AFTER_CHAMELEON or name.startswith(_VARIANT)


def method_called(name: str) -> Callable[[Setting], Record]:
    """A method by its name; `chameleon:exponent=0.5,layer=1` is Chameleon with other settings.

    Raises:
        UserError: there is none.
    """
    if name.startswith(_VARIANT):
        pairs = [pair.partition("=") for pair in name.removeprefix(_VARIANT).split(",")]
        return partial(variant, settings={key: value for key, _, value in pairs})
    if name not in _METHODS:
        raise UserError(f"{name!r} is none of the methods {', '.join(_METHODS)}")
    return _METHODS[name]
