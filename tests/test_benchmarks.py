"""benchmarks/mixtures: the other methods do what their papers say, checked on small numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from benchmarks.mixtures import (
    cost,
    elasticity,
    findings,
    forecasts,
    measured,
    methods,
    online,
    pictures,
    regmix,
    report,
    results,
    tables,
)
from benchmarks.mixtures.size import Size
from nemo_chameleon import Mixture, provider
from nemo_chameleon.config import load_config
from nemo_chameleon.config.schema import Config, ModelConfig
from nemo_chameleon.data.indexed import open_indexed
from nemo_chameleon.method.weights import effective_domains
from nemo_chameleon.mixture.edit import ComputedMixture
from nemo_chameleon.train.run import TrainingRun
from project import ROOT


@pytest.fixture
def job(config: Config, alone: None) -> TrainingRun:
    """Return a run of six iterations, each one batch of nine samples, three of each domain."""
    train = config.train
    train.train_iters, train.global_batch_size, train.micro_batch_size = 6, 9, 9
    train.eval_iters = 0
    domains = open_indexed(config.data.domains, config.data.split)
    return TrainingRun("online", config, config, domains, Mixture.uniform(domains))


Run = TypeVar("Run", bound=online.Online)


def finished(job: TrainingRun, make: Callable[[TrainingRun], Run]) -> Run:
    """Run it to its end."""
    from nemo_chameleon.distributed.layout import model_parallel

    with model_parallel(job.settings.parallel, job.settings.train.seed):
        state = make(job)
        state.complete()
    return state


def test_operations() -> None:
    """A forward pass takes two operations per weight and token and those of attention.

    Training takes three times as many.
    """
    gpt = ModelConfig(num_layers=2, hidden_size=8, num_attention_heads=2, seq_length=16)
    gpt.gated_linear_unit = False
    weights = 4 * 8 * 8 + 2 * 8 * 32
    layer = 2 * weights + 4 * 16 * 8
    assert cost.forward(gpt, 100) == 2 * layer + 2 * 8 * 100
    assert cost.forward(gpt, 100, layers=1) == layer
    assert cost.training(gpt, 100) == 3 * cost.forward(gpt, 100)


def test_every_domain_has_its_part_of_every_batch(job: TrainingRun) -> None:
    """Every step has three samples of each domain, and no sample comes twice in a run."""

    class Counting(online.Online):
        def gradients(self) -> torch.Tensor:
            batch = self.batch(self.iteration)
            assert batch["dataset_id"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
            self.seen = [*getattr(self, "seen", []), *map(tuple, batch["tokens"].tolist())]
            self.backward(batch, torch.mean)
            return torch.zeros(())

    state = finished(job, Counting)
    code = {window for i, window in enumerate(state.seen) if i % 9 < 3}
    assert len(code) == 6 * 3
    assert state.average == pytest.approx(dict.fromkeys(job.domains, 1 / 3))
    assert sum(state.drawn.values()) == 54


def test_doremi_moves_to_what_the_reference_does_better(job: TrainingRun) -> None:
    """Weights grow with exp(excess loss), sum to 1 and are smoothed; no excess is below 0."""

    class Knows(torch.nn.Module):
        """A reference whose loss is 0 on the second domain and very high on the others."""

        def forward(self, tokens: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
            losses = torch.full(tokens.shape, 100.0)
            losses[3:6] = 0.0
            return losses

    state = finished(job, lambda job: online.DoReMi(job, Knows()))
    first = state.excess[0]
    assert first[0] == first[2] == 0.0
    assert first[1] == pytest.approx(np.log(512), abs=0.5)
    moved = np.array([1.0, np.exp(first[1]), 1.0])
    np.testing.assert_allclose(state.history[0], 0.999 * moved / moved.sum() + 0.001 / 3)
    assert state.average[list(job.domains)[1]] > 0.9


def test_doge_mixes_gradients_by_alignment(job: TrainingRun) -> None:
    """Weights grow with the alignment of a domain's gradient with the others'.

    The gradient of the step is the sum of the domains' gradients by these weights.
    """
    seen = []

    class Watched(online.DoGE):
        def gradients(self) -> torch.Tensor:
            gradients, _ = self._by_domain(self.iteration)
            before = self.alpha.copy()
            loss = super().gradients()
            mixed = torch.cat([p.main_grad.flatten() for p in self._parameters])
            seen.append((before, gradients, self.alpha.copy(), mixed))
            return loss

    state = finished(job, Watched)
    lr = job.settings.optimizer.lr  # the rate of the first step, as there is no warm-up
    before, gradients, after, mixed = seen[0]
    products = (gradients @ gradients.T).double().numpy()
    np.fill_diagonal(products, 0)
    alignment = products.sum(1) / np.linalg.norm(gradients, axis=1).mean()
    assert alignment.min() > 0 and alignment.max() < 5
    grown = before * np.exp(lr * alignment / 0.01)
    np.testing.assert_allclose(after, grown / grown.sum(), rtol=1e-4)
    weights = torch.tensor(after, dtype=torch.float32)
    torch.testing.assert_close(mixed, weights @ gradients)
    assert len(state.alignment) == 6


def test_regmix_finds_the_domains_that_help() -> None:
    """RegMix chooses the domain whose weight lowers the losses.

    Its regression ranks held-out mixtures correctly.
    """
    tokens, generator = np.array([1.0, 4.0, 1.0, 2.0]), np.random.default_rng(0)
    x = regmix.mixtures(tokens, 40, generator)
    np.testing.assert_allclose(x.sum(1), 1)
    y = 3 + x @ [0.2, 0.1, -1.0, 0.3] + generator.normal(0, 0.01, 40)
    weights, predict, _ = regmix.best(x[:32], y[:32], tokens, seed=1)
    assert weights.sum() == pytest.approx(1)
    assert weights.argmax() == 2 and weights[2] > 0.8
    assert spearmanr(predict(x[32:]), y[32:]).statistic > 0.9


def test_elasticities_are_those_that_the_losses_were_made_of() -> None:
    """A fit to forty mixtures finds the worths that the losses were made of.

    The shares of the best mixture are proportional to the worths of the domains.
    """
    generator = np.random.default_rng(0)
    worth = np.array([[0.4, 0.0, 0.1, 0.0], [0.0, 0.2, 0.0, 0.3]])
    weights = generator.dirichlet(np.ones(4), 40)
    losses = elasticity.features(weights) @ worth.T
    fitted = elasticity.Elasticities.fit(weights, losses)
    np.testing.assert_allclose(fitted.values, worth, atol=1e-9)
    best = fitted.best()
    shares = worth.mean(0) / worth.sum(1).mean() * (1 + 4 * elasticity.SMOOTHING)
    np.testing.assert_allclose(best, shares - elasticity.SMOOTHING, atol=1e-9)
    others = generator.dirichlet(best * 50, 200)
    assert fitted.predicted(best).mean() < fitted.predicted(others).mean(1).min()


def test_a_method_is_predicted_from_all_others() -> None:
    """The losses of each method are predicted by a fit to all other methods."""
    weights = np.random.default_rng(0).dirichlet(np.ones(3), 20)
    features = elasticity.features(weights)
    one, other = np.array([[0.4, 0.0, 0.1]]), np.array([[0.0, 0.5, 0.0]])
    losses = np.concatenate([features[:10] @ one.T, features[10:] @ other.T])
    swapped = np.concatenate([features[:10] @ other.T, features[10:] @ one.T])
    predicted = elasticity.left_out(weights, losses, ["one"] * 10 + ["other"] * 10)
    np.testing.assert_allclose(predicted, swapped, atol=1e-9)


def test_a_forecast_goes_on_from_the_curves_that_it_was_fitted_to() -> None:
    """A fit to points of loss curves gives those curves again.

    At the best weights one more token lowers the mean loss equally in every domain.
    """
    made = forecasts.Forecast(
        np.array([[2.0, 1.0, 0.3], [3.0, 0.5, 0.5], [1.0, 2.0, 0.2]]),
        forecasts.transfer(np.array([[1.0, 0.5, -1.0], [0.5, 4.0, 0.0], [-1.0, 0.0, 1.0]])),
    )
    np.testing.assert_allclose(made.passed, [[1, 0.25, 0], [0.25, 1, 0], [0.0, 0, 1]])
    tokens = np.linspace(1e5, 3e6, 40)
    points = np.array([made.losses(np.full(3, 1 / 3), n) for n in tokens])
    fitted = forecasts.Forecast.fit(tokens, points, made.passed)
    np.testing.assert_allclose(
        fitted.losses(np.eye(3) + 0.1, 1e8), made.losses(np.eye(3) + 0.1, 1e8), rtol=1e-3
    )
    best = made.best(1e7, 0.5)
    saved = [made.losses(best + 1e-5 * step, 1e7).mean() for step in np.eye(3)]
    np.testing.assert_allclose(saved, saved[0], rtol=0, atol=1e-9)
    assert effective_domains(made.best(1e7, 0.999)) >= 2.996


def test_a_domain_that_is_worth_nothing_gets_nothing() -> None:
    """No share is below 0 and the shares sum to 1.

    They are equal where no domain is worth anything.
    """
    assert elasticity.Elasticities(np.zeros((2, 4))).best().tolist() == [0.25] * 4
    best = elasticity.Elasticities(np.array([[1.0, 0.5, 0.0, 1e-3]])).best()
    assert best[2] == best[3] == 0
    assert best.sum() == pytest.approx(1)


def test_chameleon_with_other_settings(job: TrainingRun, tmp_path: Path) -> None:
    """Settings of the scores need no model, settings of the embedding embed again, and settings of
    the proxy train another proxy.
    """
    config = job.config
    provider.resolve_mixture(config)
    computed = ComputedMixture.load(config.chameleon.file)

    class Here(Size):
        """A size whose folder is a temporary one."""

        folder = tmp_path / "size"

        def configured(self, seed: int, name: str, *given: Any) -> Config:
            """Return the configuration of the run, with the overrides of the last argument."""
            overrides = [*given[-1], f"output={tmp_path / name}"]
            return load_config(tmp_path / "config.yaml", overrides)

    size = Here("test", "", [*job.domains], [], 1, [1], [], {})
    (tmp_path / "size" / "seed1").mkdir(parents=True)
    (tmp_path / "size" / "seed1" / "chameleon").symlink_to(config.output)
    (tmp_path / "chameleon").symlink_to(config.output)
    setting = methods.Setting(size, 1, config, dict(job.domains))

    def weights(name: str) -> dict[str, Any]:
        return methods.method_called(f"chameleon:{name}")(setting)

    flat = weights("exponent=0.25,preset=calibrated")
    assert flat["weights"] == computed.rescored(exponent=0.25).mixture.weights
    assert flat["same cost as"] == "chameleon"
    layer = weights("layer=1")
    assert layer["weights"] != computed.mixture.weights
    assert setting.training_cost < layer["operations"]
    longer = weights("proxy.train.train_iters=9,exponent=0.25")
    assert longer["operations"] > setting.training_cost
    (other,) = tmp_path.glob("chameleon:*")
    assert (other / "proxy" / "iter_0000009").is_dir()
    both = weights("proxies=2")
    alone = longer["operations"] - setting.training_cost / 2
    assert both["operations"] == pytest.approx(2 * alone)
    assert layer["operations"] < alone
    assert both["weights"] != computed.mixture.weights


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return records of SIZE=smoke whose losses are made of known worths."""
    size = Size.load("smoke")
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    worth = np.array([[0.3, 0, 0, 0.1], [0, 0.3, 0, 0], [0, 0, 0.2, 0], [0, 0, 0, 0.2]])
    worth = np.concatenate([worth, [[0.1, 0.2, 0, 0], [0, 0.2, 0.2, 0]]])
    generator, made = np.random.default_rng(0), {}
    for method in ("uniform", "chameleon", "chameleon-added", "doremi", "doge", "regmix", "other"):
        for seed in (1, 2, 3):
            weights = np.full(4, 0.25) if method == "uniform" else generator.dirichlet([4.0] * 4)
            losses = 5 + 0.1 * seed + elasticity.features(weights) @ worth.T
            where = {"created": {"torch": "2"}, "machine": "here"}
            named = dict(zip(size.domains, weights.tolist(), strict=True))
            cost = {"operations": 1.0 + len(method), "seconds": 1.0}
            scores = dict(zip(size.domains, (0.1, 0.2, 0.3, 0.4), strict=True))
            made[f"weights/{method}/{seed}"] = {"weights": named, "scores": scores, **cost} | where
            made[f"base/{method}/{seed}"] = {
                "loss": dict(zip(size.domains, losses[:4].tolist(), strict=True)),
                "unseen": dict(zip(size.unseen, losses[4:].tolist(), strict=True)),
                "parameters": 1e6,
                "tokens": 1e6,
            } | where
        made[f"weights/{method}/1"]["first"] = size.domains[::2]
    return made


def written(records: dict[str, Any], tmp_path: Path) -> measured.Measured:
    """Write records as the results of a size, and read them."""
    facts = {"records": records, "data": {"unseen": {}}}
    (tmp_path / "smoke.json").write_text(json.dumps(facts))
    return measured.Measured("smoke")


def test_findings(records: dict[str, Any], tmp_path: Path) -> None:
    """Worths are those that the losses were made of. The page names methods, costs and domains."""
    for stage in ("weights", "base"):
        records[f"{stage}/chameleon-forecast/1"] = dict(records[f"{stage}/chameleon/1"])
    curves = {"curves": [[4.0, 1.0, 0.3]] * 4, "passed": np.eye(4).tolist()}
    records["weights/chameleon-forecast/1"] |= curves
    size = written(records, tmp_path)
    fitted = findings.fit(size)
    assert fitted is not None
    np.testing.assert_allclose(np.diag(fitted.own.values), [0.3, 0.3, 0.2, 0.2], atol=1e-9)
    assert max(fitted.errors) < 1e-9 < min(fitted.spreads)
    page = report.section(size)
    assert "| python | 0.100 |" in page
    assert "| elasticity of its own loss |" in page
    assert "The first mixture has the domains python, docs." in page
    assert "not trained on cpp, shakespeare, which are added later." in page
    assert "| DoReMi from scratch | 0.4 |" in page  # it takes 7 operations, and Chameleon takes 16
    assert "\nall other methods: seed 1: +0." in page
    pictures.write(size, tmp_path / "picture.svg")
    assert "doremi" in (tmp_path / "picture.svg").read_text()


def test_findings_of_a_benchmark_that_was_stopped(records: dict[str, Any], tmp_path: Path) -> None:
    """The page has no elasticities when there are too few methods.

    It leaves out a method whose base models are not trained yet.
    """
    few = {key: record for key, record in records.items() if "uniform" in key or "/chamel" in key}
    del few["base/chameleon-added/1"], few["base/chameleon-added/2"], few["base/chameleon-added/3"]
    page = report.section(written(few, tmp_path))
    assert "leverage score" in page
    assert "elasticit" not in page
    assert "added later" not in page


def test_report_says_where_a_difference_exceeds_its_spread() -> None:
    """A difference has an interval of Student's t over seeds, and is called better if it exceeds
    that. One seed gives no interval.
    """
    assert tables.verdict(np.array([-0.10, -0.11, -0.12])) == "-0.110 ± 0.025 **better**"
    assert tables.verdict(np.array([-0.10, 0.11, -0.12])).endswith("0.317")
    assert tables.verdict(np.array([0.1])) == "+0.100 (one seed)"


def test_page_is_what_the_results_say() -> None:
    """docs/results.md is what `python -m benchmarks.mixtures.report` makes of the result files."""
    assert (ROOT / report.PAGE).read_text() == report.page()
