"""Mixtures are compared by paired runs: what is trained, what is kept, and what is concluded."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import ranks
from nemo_chameleon import Mixture
from nemo_chameleon.comparison import picture
from nemo_chameleon.comparison.paired import Difference
from nemo_chameleon.comparison.report import Comparison
from project import ROOT, Launch

RECIPE = ROOT / "recipes" / "compare_mixtures.py"


def results(**losses: list[list[float]]) -> dict[str, dict[int, Any]]:
    """Return results of runs from losses [seed][set]: two domains, and one set that is unseen."""
    made = {}
    for mixture, of_seeds in losses.items():
        made[mixture] = {
            seed: {
                "domains": {"code": {"loss": code}, "prose": {"loss": prose}},
                "validation": {"news": {"loss": news}},
            }
            for seed, (code, prose, news) in enumerate(of_seeds)
        }
    return made


def compared(mean: float, deviation: float, seeds: int = 4, **settings: Any) -> str:
    """Return the report on two mixtures whose losses differ by so much in every set."""
    noise = np.linspace(-1, 1, seeds)
    noise *= deviation / (noise.std(ddof=1) if seeds > 1 else 1)
    levels = 5 + np.random.default_rng(0).normal(size=seeds)  # of no consequence in pairs
    uniform = [[level, level + 1, level + 2] for level in levels]
    mine = [[loss + mean + n for loss in of] for of, n in zip(uniform, noise, strict=True)]
    return Comparison(results(uniform=uniform, mine=mine), **settings).text()


def test_a_difference_has_the_interval_of_students_t() -> None:
    """Three values have the interval that a table of Student's t gives; one value has none."""
    three = Difference.of([0.1, 0.2, 0.6])
    assert three.mean == pytest.approx(0.3)
    assert three.half_width == pytest.approx(4.303 * np.std([0.1, 0.2, 0.6], ddof=1) / np.sqrt(3))
    assert not three.told_apart
    assert Difference.of([0.1, 0.11, 0.12]).told_apart
    one = Difference.of([0.1])
    assert one.half_width == np.inf and not one.told_apart and one.further_seeds(0.1) is None
    assert str(one) == "+0.100"


def test_further_seeds_are_the_fewest_that_make_the_interval_narrow_enough() -> None:
    """With so many seeds the half-width is at most what was asked for; with one less it is not."""
    found = Difference.of([-0.03, 0.01, 0.02, 0.03])
    more = found.further_seeds(0.01)
    assert more is not None and more > 0
    widths = [
        Difference(0.0, found.deviation, found.seeds + n).half_width for n in (more - 1, more)
    ]
    assert widths[1] <= 0.01 < widths[0]
    assert found.further_seeds(1.0) == 0
    assert found.further_seeds(1e-6) is None


def test_a_bound_is_kept_broken_or_cannot_be_told() -> None:
    """A difference is below a bound, or not, only if its whole interval is on that side."""
    found = Difference(0.0, 0.01, 4)
    half = found.half_width
    assert found.below(1.1 * half) is True
    assert found.below(-1.1 * half) is False
    assert found.below(0.5 * half) is None


def test_verdicts_in_words() -> None:
    """The words follow the interval: lower, higher, no difference that matters, or not known."""
    assert "the loss is lower, -0.100 ± 0.016 nats." in compared(-0.1, 0.01)
    assert "the loss is higher, +0.100 ± 0.016 nats." in compared(0.1, 0.01)
    small = "the loss is lower, -0.004 ± 0.002 nats, but by less than the 0.01 that matter."
    assert small in compared(-0.004, 0.001)
    assert "there is no difference of 0.05 nats or more" in compared(0.0, 0.01, difference=0.05)
    unknown = compared(0.005, 0.02)
    assert "they cannot be told apart, +0.005 ± 0.032 nats; about " in unknown
    assert "more seeds might tell." in unknown
    assert "from one seed, which cannot tell" in compared(0.1, 0.0, seeds=1)


def test_advised_seeds_would_tell() -> None:
    """With the number of seeds that is advised, and the same spread, the verdict is known."""
    for mean in (0.0, 0.004, 0.005, 0.02, 0.06):
        text = compared(mean, 0.04)
        if "told apart" not in text:
            continue
        more = int(text.split("about ")[1].split()[0])
        assert more > 0
        after = Comparison(results(a=[[5.0, 6.0, 7.0]], b=[[5.0, 6.0, 7.0]]))
        assert "told apart" not in after._verdict(Difference(mean, 0.04, 4 + more))


def test_guard_rail_names_the_domains_that_lose() -> None:
    """A limit for the worst domain is broken, kept, or not known yet; the domains are named."""
    broken = compared(0.1, 0.01, worst=0.05)
    assert (
        "no domain may lose more than 0.05 nats: broken by code (+0.100 ± 0.016), prose" in broken
    )
    assert "kept on every domain" in compared(0.0, 0.01, worst=0.05)
    unknown = compared(0.05, 0.01, worst=0.055)
    assert "it cannot be told whether code (+0.050 ± 0.016), prose" in unknown
    assert "no domain may lose" not in compared(0.1, 0.01)


def test_guard_rail_advises_seeds_for_the_domain_that_needs_most() -> None:
    """With the advised seeds every domain is known to keep the limit or to break it."""
    report = Comparison({"a": {}, "b": {}}, worst=0.05)
    by_domain = {"code": Difference(0.04, 0.01, 3), "prose": Difference(0.03, 0.1, 3)}
    said = report._guard_rail(by_domain)
    more = int(said.split("about ")[1].split()[0])
    told = [Difference(f.mean, f.deviation, 3 + more).below(0.05) for f in by_domain.values()]
    fewer = [Difference(f.mean, f.deviation, 2 + more).below(0.05) for f in by_domain.values()]
    assert told == [True, True] and None in fewer


def test_seeds_pair_runs() -> None:
    """Differences are taken at each seed, whatever the order of the runs, so levels that differ by
    seed widen no interval. Seeds that not every mixture has are left out.
    """
    text = compared(-0.1, 0.0)
    runs = results(
        uniform=[[5.0, 6.0, 7.0], [6.0, 7.0, 8.0]], mine=[[4.9, 5.9, 6.9], [5.9, 6.9, 7.9]]
    )
    turned = {"uniform": runs["uniform"], "mine": dict(reversed(runs["mine"].items()))}
    assert Comparison(turned).text() == Comparison(runs).text()
    del turned["mine"][1]
    assert Comparison(turned).differences("mine", "domains").shape == (1, 2)
    assert text.count("-0.100 ± 0.000") == 7  # five rows of the table, two verdicts
    assert "set by set: lower on code, prose, news." in text
    assert "mean over the other sets" in text


def test_unseen_sets_are_summarised_by_their_median_too() -> None:
    """Over three unseen sets the median does not follow the one that is far off, as the mean does.

    The sets on which the loss is lower, higher or not told apart are named.
    """
    found = results(uniform=[[5.0, 6.0, 7.0]] * 3, mine=[[5.1, 6.0, 7.0]] * 3)
    for name, runs in found.items():
        for seed, run in runs.items():
            noise = 0.01 * seed if name == "mine" else 0.0
            far = 9.0 if name == "mine" else 8.0
            losses = {"news": 7.0 + noise - 0.5 * (name == "mine"), "law": 6.0, "far": far}
            run["validation"] = {key: {"loss": loss + noise} for key, loss in losses.items()}
    text = Comparison(found).text()
    assert "mine against uniform, mean over the other sets: the loss is higher" in text
    assert "mine against uniform, median over the other sets: they cannot be told apart" in text
    assert "lower on news; higher on code, far; not told apart on prose, law." in text


def test_picture_names_every_mixture(tmp_path: Path) -> None:
    """The picture names each mixture except the baseline. Without points there is no picture."""
    losses = [[5.0, 6.0, 7.0], [5.1, 6.2, 7.3]]
    shown = picture.points(Comparison(results(uniform=losses, mine=losses, chameleon=losses)))
    assert [(point.label, point.ours) for point in shown] == [("mine", False), ("chameleon", True)]
    assert picture.draw(shown, tmp_path / "picture.svg")
    drawn = (tmp_path / "picture.svg").read_text()
    assert "mine" in drawn and "chameleon" in drawn
    assert not picture.draw([], tmp_path / "none.svg")


def asked(config_file: Path, **compare: Any) -> None:
    """Add a comparison of three mixtures and two seeds to the configuration."""
    config = yaml.safe_load(config_file.read_text())
    config["compare"] = {
        "mixtures": ["uniform", "proportional", "chameleon"],
        "seeds": [1, 2],
        **compare,
    }
    config_file.write_text(yaml.safe_dump(config))


def test_comparison(launch: Launch, config_file: Path, tmp_path: Path) -> None:
    """Every mixture trains with every seed, two runs at once, and the runs are those that the
    pretraining recipe would do.

    All runs of a mixture have the same weights. A second start trains nothing, more seeds can be
    added, and a setting that has changed is refused.
    """
    asked(config_file)
    first = launch(processes=2, recipe=RECIPE).stdout
    folder = tmp_path / "out" / "compare"
    runs = {path.parent for path in folder.glob("*/*/result.json")}
    assert len(runs) == 6
    weights = [
        json.loads((folder / "chameleon" / f"seed{seed}" / "mixture.json").read_text())["weights"]
        for seed in (1, 2)
    ]
    assert weights[0] == weights[1]
    assert not list(folder.glob("**/iter_*"))  # finished runs keep no checkpoints
    assert "chameleon against uniform, mean over the domains: " in first
    assert (folder / "report.txt").read_text().strip() in first
    alone = launch("data.mixture=uniform", "train.seed=2", f"output={tmp_path / 'alone'}")
    assert alone.returncode == 0
    same = json.loads((tmp_path / "alone" / "uniform" / "result.json").read_text())
    mine = json.loads((folder / "uniform" / "seed2" / "result.json").read_text())
    assert mine["domains"] == same["domains"]

    again = launch("compare.seeds=[1,2,3]", processes=2, recipe=RECIPE).stdout
    assert "uniform, seed 3: mean loss" in again and "seed 2: mean loss" not in again
    assert "mean loss in nats per token over 3 seeds" in again
    changed = launch("train.train_iters=7", processes=2, recipe=RECIPE, check=False)
    assert changed.returncode != 0
    assert "was made with train.train_iters = 6, but the comparison has 7" in changed.stderr


def test_killed_comparison_ends_as_if_never_killed(
    launch: Launch, config_file: Path, tmp_path: Path
) -> None:
    """A comparison that was killed while several runs went on trains only what is missing, and
    ends with the report of one that was never killed.
    """
    asked(config_file, mixtures=["uniform", "proportional"], seeds=[1, 2, 3])
    settings = ("train.train_iters=40", "checkpoint.save_interval=10", "logging.log_interval=10")
    whole = launch(*settings, f"output={tmp_path / 'whole'}", processes=2, recipe=RECIPE)
    folder = tmp_path / "out" / "compare"
    arguments = ["--config", str(config_file), *settings]
    begun = ranks.start_script(RECIPE, arguments, processes=2)
    deadline = time.monotonic() + 120
    while not list(folder.glob("*/seed*/finished.json")):
        assert time.monotonic() < deadline and not begun.poll()
        time.sleep(0.01)
    begun.kill()
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*/seed*/finished.json")}
    assert len(kept) < 6, "it ended before it was killed"
    launch(*settings, processes=2, recipe=RECIPE)
    assert kept.items() <= {p: p.stat().st_mtime_ns for p in folder.glob("*/*/*.json")}.items()
    report = (folder / "report.txt").read_text()
    assert report == (tmp_path / "whole" / "compare" / "report.txt").read_text()
    assert report.strip() in whole.stdout


@pytest.mark.parametrize("idle", [0, 1])
def test_stopped_comparison_goes_on(
    launch: Launch, config_file: Path, tmp_path: Path, idle: int
) -> None:
    """When its processes get SIGUSR1, every run saves, even if another part has nothing left to do;
    the same command goes on from there.
    """
    asked(config_file, mixtures=["uniform", "proportional"], seeds=[1])
    folder = tmp_path / "out" / "compare"
    long = ("train.train_iters=400", "checkpoint.save_interval=0", "logging.log_interval=5")
    arguments = ["--config", str(config_file), *long]
    begun = ranks.start_script(RECIPE, arguments, processes=2)
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*/seed1/mixture.json"))) < 2:  # training begins
        assert time.monotonic() < deadline and not begun.poll()
        time.sleep(0.01)
    time.sleep(0.2 * idle)  # which of the two parts stops first does not matter
    for rank in (idle, 1 - idle):
        begun.send(rank, signal.SIGUSR1)
    assert begun.wait(timeout=120) != 0
    assert not list(folder.glob("*/seed1/result.json")), "it ended before it was asked to stop"
    assert len(list(folder.glob("*/seed1/iter_*"))) == 2
    assert launch(*long, processes=2, recipe=RECIPE).stdout.count("resuming from") == 2

    # One run is missing, so one part has nothing to do and waits for the other.
    more = (*long, "compare.seeds=[1,2]", "compare.mixtures=[uniform,proportional]")
    launch(*more, processes=2, recipe=RECIPE)
    for name in ("finished.json", "result.json"):
        (folder / "uniform" / "seed2" / name).unlink()
    begun = ranks.start_script(RECIPE, ["--config", str(config_file), *more], processes=2)
    mark = (folder / "uniform" / "seed2" / "mixture.json").stat().st_mtime_ns
    while (folder / "uniform" / "seed2" / "mixture.json").stat().st_mtime_ns == mark:
        assert time.monotonic() < deadline + 120 and not begun.poll()
        time.sleep(0.01)
    for rank in (0, 1):
        begun.send(rank, signal.SIGUSR1)
    assert begun.wait(timeout=120) != 0
    assert len(list((folder / "uniform" / "seed2").glob("iter_*"))) == 1


def test_a_run_that_fails_does_not_keep_others_from_being_trained(
    launch: Launch, config_file: Path
) -> None:
    """When runs fail, the runs after them are trained all the same; the error names all of them."""
    asked(config_file, mixtures=["uniform", "proportional"], seeds=[1, 2])
    settings = ("optimizer.lr=1e30", "optimizer.clip_grad=0", "logging.log_interval=1")
    done = launch(*settings, processes=2, recipe=RECIPE, check=False)
    assert done.returncode != 0
    for name in ("uniform", "proportional"):
        for seed in (1, 2):
            assert (
                f"compare/{name}/seed{seed}: the norm of the gradients is nan at iteration"
                in done.stderr
            )
    assert "All other runs are finished: leave a mixture or a seed out" in done.stderr


def test_a_result_is_of_one_mixture(launch: Launch, config_file: Path, tmp_path: Path) -> None:
    """A run that began on other weights is refused before anything is trained, although
    data.on_mixture_change=accept; checkpoints are kept where that is asked for.
    """
    mine = tmp_path / "mine.json"
    weights = {"code": 0.5, "prose": 0.25, "legal": 0.25}
    Mixture.static(weights).save(mine)
    asked(config_file, mixtures=["uniform", str(mine)], seeds=[2, 1], keep_checkpoints=True)
    launch(recipe=RECIPE)
    folder = tmp_path / "out" / "compare"
    assert len(list(folder.glob("*/seed*/iter_*"))) == 4
    for name in ("finished.json", "result.json"):
        (folder / "mine" / "seed1" / name).unlink()
    Mixture.static({**weights, "code": 0.7}).save(mine)
    changed = launch("data.on_mixture_change=accept", recipe=RECIPE, check=False)
    assert changed.returncode == 2
    assert "was made with other weights: " in changed.stderr
    assert not (folder / "mine" / "seed1" / "result.json").exists()


def test_a_run_has_as_many_processes_as_asked(launch: Launch, config_file: Path) -> None:
    """With compare.processes=2 each run has both processes; a number that does not divide the
    processes is refused.
    """
    asked(config_file, mixtures=["uniform", "proportional"], seeds=[1])
    done = launch("compare.processes=2", processes=2, recipe=RECIPE)
    assert "from one seed, which cannot tell" in done.stdout
    refused = launch("compare.processes=3", processes=2, recipe=RECIPE, check=False)
    assert refused.returncode != 0
    assert "a run has 3 processes by compare.processes or `parallel`, but the" in refused.stderr


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("compare.mixtures=[uniform]", "compare.mixtures=['uniform'] must have 2 or more"),
        ("compare.seeds=[1,1]", "compare.seeds=[1, 1] must have 1 or more, and none twice"),
        ("compare.mixtures=[chameleon,nothing]", "data.mixture=nothing is neither a file"),
        ("compare.seeds=[-1]", "compare.seeds: train.seed=-1 must be at least 0"),
        ("parallel.tensor_model_parallel_size=2", "but the job has 1: start a multiple of 2"),
        ("compare.worst=-1", "compare.worst=-1.0 must be at least 0"),
        ("train.eval_iters=0", "a comparison needs losses: set train.eval_iters above 0"),
        ("engine=nemo", "engine=nemo: a comparison trains with this package's own loop"),
    ],
)
def test_refused(
    launch: Launch, config_file: Path, tmp_path: Path, override: str, error: str
) -> None:
    """A comparison that cannot be made ends before anything is trained, and says what to change."""
    asked(config_file)
    done = launch(override, recipe=RECIPE, check=False)
    assert done.returncode == 2
    assert error in done.stderr
    assert not (tmp_path / "out" / "proxy").exists()
