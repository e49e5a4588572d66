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
    arms,
    claims,
    cost,
    measured,
    methods,
    online,
    regmix,
    report,
    results,
)
from benchmarks.mixtures.size import Size
from nemo_chameleon import Mixture, provider
from nemo_chameleon.config import load_config
from nemo_chameleon.config.schema import Config, ModelConfig
from nemo_chameleon.data.indexed import open_indexed
from nemo_chameleon.mixture.edit import ComputedMixture
from nemo_chameleon.train.run import TrainingRun
from nemo_chameleon.utils.errors import UserError
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

    size = Here("test", "", [*job.domains], [], 1, {}, {})
    (tmp_path / "size" / "seed1").mkdir(parents=True)
    (tmp_path / "size" / "seed1" / "chameleon").symlink_to(config.output)
    (tmp_path / "chameleon").symlink_to(config.output)
    setting = methods.Setting(size, 1, config, dict(job.domains))

    def weights(name: str) -> dict[str, Any]:
        return methods.method_called(f"chameleon:{name}")(setting)

    flat = weights("exponent=0.25,preset=calibrated")
    assert flat["weights"] == computed.rescored(exponent=0.25).mixture.weights
    mixed = weights("exponent=0.25,uniform=0.7")
    third = {name: 0.7 / 3 + 0.3 * weight for name, weight in flat["weights"].items()}
    assert mixed["weights"] == pytest.approx(third)
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
    """Return records of SIZE=smoke. Chameleon's losses are 0.1 lower on unseen domains and 0.02
    higher on the mixed ones, and a peer's are 0.1 higher on all, but for a noise of 0.01 by seed.
    """
    size = Size.load("smoke")
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    made: dict[str, Any] = {}
    better = {"uniform": (0.0, 0.0), "chameleon": (0.02, -0.1), "doremi": (0.1, 0.1)}
    for method, (domains, unseen) in {**better, "chameleon-added": (0.0, 0.0)}.items():
        for seed in (1, 2, 3, 4):
            level = 5 + seed + (0.0 if method == "uniform" else 0.01 * (-1) ** seed)
            where = {"created": {"torch": "2"}, "machine": "here"}
            weights = dict(zip(size.domains, (0.1, 0.2, 0.3, 0.4), strict=True))
            made[f"weights/{method}/{seed}"] = {
                "weights": weights,
                "scores": dict(zip(size.domains, (0.4, 0.3, 0.2, 0.1), strict=True)),
                "operations": 1.0 + len(method),
                "seconds": 1.0,
                "first": size.domains[::2],
            } | where
            made[f"base/{method}/{seed}"] = {
                "weights": weights,
                "loss": dict.fromkeys(size.domains, level + domains),
                "unseen": dict.fromkeys(size.unseen, level + unseen),
                "gradient norm": {"median": 1.0, "largest": 2.0},
                "parameters": 1e6,
                "tokens": 1e6,
            } | where
    return made


def written(records: dict[str, Any], tmp_path: Path) -> measured.Measured:
    """Write records as the results of a size, and read them."""
    size = Size.load("smoke")
    sets = {name: {"tokens": 3, "bytes": 9} for name in [*size.domains, *size.unseen]}
    shared = {"still shared with the domains": 0.0}
    facts = {
        "records": records,
        "data": {
            "domains": {name: {"validation": sets[name]} for name in size.domains},
            "unseen": {name: sets[name] | shared for name in size.unseen},
        },
    }
    (tmp_path / "smoke.json").write_text(json.dumps(facts))
    return measured.Measured("smoke")


def test_claims(records: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim holds if its whole interval is below the bound, and not if it is above. It is
    undecided if the interval contains the bound or not all seeds were measured, and only as many
    seeds count as the size has; a claim about two sizes holds only on both.
    """
    size = written(records, tmp_path)

    def verdict(*sizes: str, seeds: int = 4, **about: Any) -> str:
        claim = {"method": "chameleon", "against": "uniform", "part": "unseen", "below": -0.03}
        monkeypatch.setattr(claims, "seeds_of", lambda *_: seeds)
        made = claims.Claim("It is so.", [*sizes], **{**claim, **about})
        table = claims.as_table(claims.judged({"smoke": size}, [made]))
        return table.split("|")[-2].strip()

    assert verdict("smoke") == "**held** on one set"
    assert verdict("smoke", below=-0.13) == "**not held**"
    assert verdict("smoke", below=-0.1) == "undecided"
    assert verdict("smoke", "cpu") == "undecided"
    assert verdict("smoke", "cpu", below=-0.13) == "**not held**"
    assert verdict("smoke", against="doremi", part="domains", below=-0.05) == "**held** on one set"
    assert verdict("smoke", method="doge") == "undecided"
    assert verdict("smoke", seeds=5) == "undecided"  # the size has more seeds than were run
    assert verdict("smoke", seeds=2) == "undecided"  # of the first two alone the interval is wide


def test_a_claim_that_does_not_hold_is_explained(
    records: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page says which claim about the default does not hold, and shows which domains were
    raised and lowered and which unseen sets gained or paid; it is silent where all claims hold.
    """
    size = written(records, tmp_path)
    monkeypatch.setattr(report, "all_measured", lambda: [size])
    monkeypatch.setattr(claims, "seeds_of", lambda *_: 4)
    heading = "## Where a claim does not hold"

    def page(below: float) -> str:
        made = claims.Claim("It is so.", ["smoke"], "chameleon", "uniform", "unseen", below)
        monkeypatch.setattr(claims, "claims", lambda: [made])
        return report.page()

    assert heading not in page(-0.03)
    explained = page(-0.13).split(heading)[1].split("\n## ")[0]
    assert "- **Not held:** It is so." in explained
    rows = [line.split(" | ") for line in explained.splitlines() if line.startswith("| ")]
    by_name = {name.strip("| "): cell.strip("| ") for name, cell in rows[2:]}
    assert by_name["share of the samples that moved to another domain"] == "0.200"
    raised = ", ".join(
        f"{n} {w:.2f}" for n, w in zip(size.size.domains[2:], (1.2, 1.6), strict=True)
    )
    assert by_name["raised domains (weight, uniform = 1)"] == raised
    assert all(f"{name} -0.100" in explained for name in size.size.unseen)
    assert by_name["unseen sets with a higher loss"] == "none"


def test_every_claim_can_be_measured() -> None:
    """Each claim is about methods that the sizes run, with the same seeds."""
    for claim in claims.claims():
        for name in claim.sizes:
            arms = Size.load(name).methods
            assert min(arms[method].seeds for method in (claim.method, claim.against)) >= 4
        assert claim.part in measured.PARTS


def test_unseen_losses_are_compared_by_their_median(tmp_path: Path, records: Any) -> None:
    """One unseen domain that is far off does not move the figure; a mixed one does."""
    for seed in (1, 2, 3, 4):
        records[f"base/chameleon/{seed}"]["loss"]["cpp"] += 4.0
        for of in ("chameleon", "uniform"):
            unseen = records[f"base/{of}/{seed}"]["unseen"]
            unseen["far"] = unseen["javascript"] + (4.0 if of == "chameleon" else 0.0)
    size = written(records, tmp_path)
    size.size.unseen.append("far")
    of_unseen = size.difference("chameleon", "unseen")
    assert of_unseen.mean == pytest.approx(-0.1)
    assert size.difference("chameleon", "domains").mean == pytest.approx(1.02)


def test_page(records: dict[str, Any], tmp_path: Path) -> None:
    """The page has differences with intervals, bits per byte, costs and domains that are added."""
    for seed in (1, 2):
        records[f"base/uniform:optimizer.lr=1/{seed}"] = records[f"base/uniform/{seed}"]
    page = report.section(written(records, tmp_path))
    assert "| +0.020 ± 0.018 | 0, 4 of 4 | -0.100 ± 0.018 | 2, 0 of 2 | 0.012 |" in page
    bits = 7.5 / 3 / np.log(2)
    assert f"| python | 7.500 | {bits:.3f} | +0.020 |" in page
    assert "| python | 0.400 | 0.40 | +0.020 |" in page
    assert "The first mixture has the domains python, docs." in page
    assert "not trained on cpp, shakespeare, which are added later." in page
    assert "| DoReMi from scratch | 0.4 |" in page  # it takes 7 operations, and adding takes 16
    assert "| optimizer.lr=1 | 1, 2 | 6.500 | 0.707 | 1.000 | 1.00 | 2.00 |" in page
    report.draw(written(records, tmp_path), tmp_path / "picture.svg")
    assert "DoReMi" in (tmp_path / "picture.svg").read_text()


def test_page_of_a_benchmark_that_was_stopped(records: dict[str, Any], tmp_path: Path) -> None:
    """The page leaves out a method whose base models are not trained yet."""
    few = {key: record for key, record in records.items() if "base/chameleon-added" not in key}
    page = report.section(written(few, tmp_path))
    assert "leverage score" in page
    assert "added later" not in page


def test_a_method_has_one_mixture_for_all_seeds(records: dict[str, Any], tmp_path: Path) -> None:
    """Base models train on the mean of their method's weights, or on a permutation of Chameleon's.

    The permutation depends on the seed alone. Uniform weights can have other settings.
    """
    size = written(records, tmp_path).size
    records["weights/chameleon/1"]["weights"] = dict(zip(size.domains, (1, 0, 0, 0), strict=True))
    written(records, tmp_path)
    weights, overrides = arms.mixture_of(size, "chameleon", 7)
    assert list(weights.values()) == pytest.approx([0.325, 0.15, 0.225, 0.3]) and not overrides
    permuted = [arms.mixture_of(size, "permuted", seed)[0] for seed in range(1, 9)]
    assert all(sorted(of.values()) == sorted(weights.values()) for of in permuted)
    assert not any(of[name] == weights[name] for of in permuted for name in weights)
    assert len({tuple(of.values()) for of in permuted}) > 2
    (tmp_path / "smoke.json").write_text('{"records": {}}')
    with pytest.raises(UserError, match="add chameleon to --methods"):
        arms.mixture_of(size, "permuted", 1)
    equal, overrides = arms.mixture_of(size, "uniform:optimizer.lr=1,train.seed=2", 1)
    assert set(equal.values()) == {0.25} and overrides == ["optimizer.lr=1", "train.seed=2"]


def test_base_models_of_one_method_have_one_mixture(
    records: dict[str, Any], tmp_path: Path
) -> None:
    """Results whose base models trained on several mixtures of one method are refused."""
    changed = {**records["base/chameleon/1"]["weights"], "cpp": 0.9}
    records["base/chameleon/1"] = records["base/chameleon/1"] | {"weights": changed}
    with pytest.raises(UserError, match="the base models of chameleon have several mixtures"):
        written(records, tmp_path)


def test_page_is_what_the_results_say() -> None:
    """docs/results.md is what `python -m benchmarks.mixtures.report` makes of the result files."""
    assert (ROOT / report.PAGE).read_text() == report.page()
