"""proxy.count and drift: several proxies give one mixture, and each shows how trained it is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_chameleon import Mixture, provider
from nemo_chameleon.config.schema import CAVEAT_KEYS, Config
from nemo_chameleon.config.validation import check_mixture
from nemo_chameleon.embedding import pooling, sampler
from nemo_chameleon.mixture.edit import ComputedMixture, averaged
from nemo_chameleon.provider import proxy, runs
from nemo_chameleon.provider.preflight import prepare_mixture
from nemo_chameleon.train import trainer
from nemo_chameleon.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("alone")


def computed(config: Config, count: int = 1, seed: int = 1234, name: str = "mixture") -> Path:
    """Compute a mixture through `count` proxies, and return its file."""
    config.proxy.count, config.proxy.train.seed = count, seed
    config.chameleon.file = str(Path(config.output) / f"{name}.json")
    provider.resolve_mixture(config)
    return Path(config.chameleon.file)


def test_several_proxies_give_the_average_of_their_mixtures(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """proxy.count=2 gives what `mixture average` makes of two mixtures with the two seeds.

    The second proxy lies in a folder of its own, and the runs accept each other's mixtures.
    """
    both = computed(config, 2)
    out = Path(config.output)
    assert {path.name for path in out.glob("proxy*")} == {"proxy", "proxy-2"}
    assert not (out / "mixture.partial").exists()
    parts = []
    for seed in (1234, 1235):
        config.output = str(tmp_path / str(seed))
        parts.append(ComputedMixture.load(computed(config, 1, seed), CAVEAT_KEYS))
    one, two = ComputedMixture.load(both), averaged(parts)
    assert one.mixture.weights == two.mixture.weights
    assert one.mixture.uncertainty == two.mixture.uncertainty
    assert one.mixture.method == two.mixture.method
    assert one.mixture.method["intervals"] == "proxies"
    assert [p["trained"] for p in one.proxies] != [parts[0].proxies[0]["trained"]] * 2

    monkeypatch.setattr(provider.resolve, "compute_mixture", lambda _: pytest.fail("computed"))
    two.save(tmp_path / "average.json")
    config.proxy.count, config.proxy.train.seed = 2, 1234
    for file in (both, tmp_path / "average.json"):
        config.chameleon.file = str(file)
        assert provider.resolve_mixture(config).weights == one.mixture.weights
    config.proxy.count = 1
    with pytest.raises(UserError, match=r"several proxies: use it as data\.mixture=.* or set prox"):
        provider.resolve_mixture(config)
    config.proxy.train.seed, config.proxy.count = 9, 2
    with pytest.raises(UserError, match=r"several proxies: use it as data\.mixture=[^,]*\.json; "):
        provider.resolve_mixture(config)
    config.chameleon.file, config.proxy.train.seed = str(tmp_path / "1234" / "mixture.json"), 1234
    with pytest.raises(UserError, match=r"one proxy, but proxy\.count=2: set proxy\.count=1"):
        provider.resolve_mixture(config)


def test_each_seed_trains_a_proxy_of_its_own(config: Config) -> None:
    """The first of several proxies is the only proxy of count 1, and the others differ from it."""
    domains = provider.prepare(config).domains
    alone = runs.proxy_run(config, domains)
    config.proxy.count = 3
    three = runs.proxy_runs(config, domains)
    assert [run.name for run in three] == ["proxy", "proxy-2", "proxy-3"]
    assert [run.settings.train.seed for run in three] == [1234, 1235, 1236]
    assert three[0].identity() == alone.identity() != three[1].identity()
    plan = provider.prepare(config).plan
    assert plan is not None
    assert len(set(plan.settings)) == 3
    assert "each of 3 proxies that are trained first embeds the domains" in plan.cost(3)
    Mixture.uniform(config.data.domains).save(Path(config.output).parent / "proxy-3.json")
    config.data.mixture = str(Path(config.output).parent / "proxy-3.json")
    with pytest.raises(UserError, match="has another use"):
        provider.prepare(config)


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("proxy.load", lambda config: setattr(config.proxy, "load", "there")),
        ("proxy.hf", lambda config: setattr(config.proxy, "hf", "there")),
        ("chameleon.source=model", lambda config: setattr(config.chameleon, "source", "model")),
    ],
)
def test_existing_models_have_no_count(
    config: Config, key: str, change: Callable[[Config], None]
) -> None:
    """proxy.count above 1 is refused where a model that exists embeds."""
    config.proxy.count = 2
    check_mixture(config)
    change(config)
    with pytest.raises(UserError, match=f"proxy.count=2 trains proxies, but with {key} a model"):
        check_mixture(config)


@pytest.mark.parametrize(
    ("count", "seed", "says"), [(0, 1, "count=0"), (2, 2**32 - 2**20 - 1, "seed")]
)
def test_wrong_counts(config: Config, count: int, seed: int, says: str) -> None:
    """There is at least one proxy, and every one has a valid seed."""
    config.proxy.count, config.proxy.train.seed = count, seed
    with pytest.raises(UserError, match=rf"proxy\..*{says}"):
        check_mixture(config)


def test_checkpoints_of_another_second_proxy_are_found_before_training(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint in the second proxy's folder that is not its own is refused at the start."""
    monkeypatch.setattr("nemo_chameleon.models.whole.fault_of", lambda path: None)
    config.proxy.count = 2
    checkpointed = Path(config.output) / "proxy-2" / "iter_0000006"
    checkpointed.mkdir(parents=True)
    (checkpointed / "state.json").write_text('{"identity": {}}')
    (checkpointed.parent / "latest_checkpointed_iteration.txt").write_text("6")
    with pytest.raises(UserError, match=r"proxy-2/iter_0000006 was made with model\.num_layers"):
        provider.prepare(config)
    assert not (Path(config.output) / "proxy").exists()


def test_what_is_finished_is_not_done_twice(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that dies at any point neither trains nor embeds again what was finished.

    It ends at the mixture of an uninterrupted run.
    """
    whole = Mixture.load(computed(config, 2))
    config.output, config.chameleon.file = str(tmp_path / "again"), str(tmp_path / "a" / "m.json")
    steps, draws = 0, 0
    real_step, real_embed = trainer.Trainer.step, pooling.embed
    dies_after: dict[str, int] = {}

    def step(*arguments: Any) -> Any:
        nonlocal steps
        if steps == dies_after.get("steps"):
            raise KeyboardInterrupt
        steps += 1
        return real_step(*arguments)

    def embed(*arguments: Any, **settings: Any) -> Any:
        nonlocal draws
        if draws == dies_after.get("draws"):
            raise KeyboardInterrupt
        draws += 1
        return real_embed(*arguments, **settings)

    monkeypatch.setattr(trainer.Trainer, "step", step)
    monkeypatch.setattr(sampler, "embed", embed)
    # Six iterations each, a draw of three domains after the fourth one, and one at the end.
    for point in ({"steps": 8}, {"draws": 5}, {"draws": 8}, {"draws": 11}):
        dies_after = point
        with pytest.raises(KeyboardInterrupt):
            provider.resolve_mixture(config)
    dies_after = {}
    done = provider.resolve_mixture(config)
    assert draws == 12
    assert steps == 6 + 2 + 4 + 6, "the second proxy began again twice, before its checkpoint"
    assert done.weights == whole.weights
    assert done.uncertainty == whole.uncertainty
    drifts = [[p["drift"] for p in m.proxy["averaged"]] for m in (done, whole)]
    assert drifts[0] == drifts[1]
    assert not (tmp_path / "a" / "m.partial").exists()


def test_windows_alone_decide_how_many_are_drawn(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With samples=auto two proxies embed as many windows as one does, although they disagree."""
    monkeypatch.setattr(sampler, "_FIRST_SAMPLES", 64)
    config.chameleon.samples, config.chameleon.tolerance = "auto", 0.9
    first = Mixture.load(computed(config, 1, name="one"))
    assert {facts["samples"] for facts in first.domains.values()} == {64}
    half = max(high - low for low, high in first.uncertainty.values()) / 2
    config.chameleon.tolerance = 0.9 * half
    one = Mixture.load(computed(config, 1, name="two"))
    both = ComputedMixture.load(computed(config, 2, name="both"))
    drawn = {name: facts["samples"] for name, facts in one.domains.items()}
    assert max(drawn.values()) > 64
    assert {name: facts["samples"] for name, facts in both.facts.items()} == drawn
    first_proxy, second = both.embeddings
    for name in drawn:
        assert second[name].tokens.tolist() == first_proxy[name].tokens.tolist()


def test_every_layer_of_several_proxies(config: Config) -> None:
    """With layer=all the weights of each layer are those of all proxies together."""
    config.chameleon.layer = "all"
    mixture = Mixture.load(computed(config, 2))
    assert mixture.method["layers"]["2"] == pytest.approx(mixture.weights, abs=1e-12)
    assert mixture.method["layers"]["3"] != pytest.approx(mixture.weights, abs=1e-4)


def test_drift_is_the_distance_of_two_mixtures(config: Config, tmp_path: Path) -> None:
    """The drift is the total variation between the weights of the proxy's checkpoints after three
    quarters of its training and at its end.
    """
    config.checkpoint.save_interval = 4
    config.proxy.train.train_iters, config.chameleon.samples = 6, 100
    recorded = Mixture.load(computed(config))
    assert recorded.proxy["iterations"] == 6
    folder, weights = Path(config.output) / "proxy", []
    config.output = str(tmp_path / "loaded")
    for iteration in (4, 6):
        config.proxy.load = str(folder / f"iter_{iteration:07d}")
        loaded = Mixture.load(computed(config, name=f"at{iteration}"))
        assert "drift" not in loaded.proxy
        weights.append(np.array(list(loaded.weights.values())))
    moved = np.abs(weights[0] - weights[1]).sum() / 2
    assert recorded.proxy["drift"] == pytest.approx(moved, abs=6e-5)
    assert recorded.proxy["drift"] > 1e-3


def test_drift_changes_no_mixture(config: Config) -> None:
    """A proxy that was trained without measuring its drift gives the same mixture to the last bit,
    and no drift.
    """
    with_drift = Mixture.load(computed(config))
    config.output += "-other"
    trainer.train(runs.proxy_run(config, prepare_mixture(config).domains))
    without = Mixture.load(computed(config))
    assert "drift" not in without.proxy
    assert "drift" in with_drift.proxy
    assert without.weights == with_drift.weights
    assert without.uncertainty == with_drift.uncertainty
    assert without.proxy["loss"] == with_drift.proxy["loss"]
    embedded = [m.domains["code"]["embedding"] for m in (without, with_drift)]
    assert embedded[0] == embedded[1]


def test_a_failing_drift_ends_no_training(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """If too few windows can be embedded for the drift, the run goes on without it."""
    real, calls = pooling.embed, []

    def embed(*arguments: Any, **settings: Any) -> Any:
        calls.append(settings["samples"])
        if len(calls) == 1:
            raise UserError("too few windows")
        return real(*arguments, **settings)

    monkeypatch.setattr(sampler, "embed", embed)
    assert "drift" not in Mixture.load(computed(config)).proxy


def test_train_proxy_trains_all(config: Config) -> None:
    """`train_proxy` trains every proxy; the mixture then needs no training and has their drifts."""
    config.proxy.count = 2
    proxy.train_proxy(prepare_mixture(config))
    trained = sorted(Path(config.output).glob("proxy*/iter_*"))
    assert len(trained) == 2
    times = [path.stat().st_mtime_ns for path in trained]
    mixture = Mixture.load(computed(config, 2))
    assert all("drift" in record for record in mixture.proxy["averaged"])
    assert [path.stat().st_mtime_ns for path in trained] == times


def test_what_is_embedded_is_kept_until_the_mixture_is_written(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that dies before its mixture file is there embeds nothing again."""

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(proxy, "save_embeddings", die)
        computed(config)
    monkeypatch.setattr(sampler, "embed", lambda *_, **settings: pytest.fail("embedded again"))
    assert computed(config).is_file()


def test_no_file_has_the_place_of_the_cache(config: Config, tmp_path: Path) -> None:
    """The value of data.cache, which may come from the environment, is in no file of a run.

    Neither is it in a file of the cache.
    """
    config.data.cache = str(tmp_path / "secret-4711" / "cache")
    trainer.train(
        runs.base_run(config, provider.prepare(config).domains, Mixture.load(computed(config)))
    )
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"mixture.json", "state.json", "result.json", "manifest.json"} <= {f.name for f in files}
    assert [path for path in files if b"secret-4711" in path.read_bytes()] == []
