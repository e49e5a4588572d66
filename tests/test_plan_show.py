"""cli/plans.py: what a run will draw, on paper, as a picture, and compared with another one."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from test_plan import STAGES, drawn_on, settings_of

from nemo_chameleon import Mixture, cli, provider
from nemo_chameleon.config import load_config
from nemo_chameleon.mixture.plan import Plan, PlannedOrder, Stage
from nemo_chameleon.mixture.plan_picture import draw_shares, shares_over_run
from nemo_chameleon.mixture.plan_tables import show_plan
from nemo_chameleon.provider.costs import epoch_samples
from nemo_chameleon.provider.outlook import outlook
from nemo_chameleon.utils.errors import UserError

BOUNDED = (
    "data.stages=[{until: 0.5, mixture: uniform, max_epochs: 0.5}, {until: 0.75, mixture: "
    "static, pin: {prose: 0.5}, floor: {legal: 0.2}}, {mixture: uniform, max_epochs: 1.2}]"
)
WEIGHTS = [
    f"data.domains.{name}.weight={w}" for name, w in (("code", 8), ("prose", 1), ("legal", 1))
]


def typed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Run the command with these arguments."""
    monkeypatch.setattr(sys, "argv", ["nemo-chameleon", *arguments])
    cli.main()


def test_what_is_shown_is_what_the_run_will_draw(config_file: Path, tmp_path: Path) -> None:
    """Samples, bounds that bind, and where a domain is drawn again, against the run's order."""
    settings = settings_of(tmp_path, "run", BOUNDED, *WEIGHTS, "train.train_iters=700")
    config = load_config(str(config_file), settings)
    found = outlook(config, 16)
    assert found == json.loads(json.dumps(found))
    domains = provider.prepare(config).domains
    run = provider.resolve_run(config, domains)
    assert run.plan is not None
    names = [*domains]
    order, numbers = PlannedOrder(run.plan, names).at(np.arange(0, run.plan.samples))
    held = [stage["held"] for stage in found["stages"]]
    assert [(stage["first"], stage["end"]) for stage in found["stages"]] == [
        (0, 2800),
        (2800, 4200),
        (4200, 5600),
    ]
    assert held[0] == {"pin": [], "floor": [], "max_epochs": ["prose", "legal"]}
    assert held[1] == {"pin": ["prose"], "floor": ["legal"], "max_epochs": []}
    assert found["stages"][2]["exhausted"] == ["legal"], "1.2 epochs were drawn before"
    assert "legal" not in found["stages"][2]["domains"]
    for at, name in enumerate(names):
        entry = found["domains"][name]
        assert entry["samples"] == (order == at).sum()
        size = epoch_samples(domains[name], run.kind, 32)
        again = ((order == at) & (numbers == size)).nonzero()[0]
        repeats = None if entry["repeats_from"] is None else entry["repeats_from"]["sample"]
        assert repeats == (int(again[0]) if len(again) else None)
    assert found["domains"]["legal"]["repeats_from"]["stage"] == 2
    assert found["domains"]["legal"]["full_after_stage"] == 1
    assert found["computed"]
    text = show_plan(found)
    for said in (
        "700 iterations, 5,600 samples of 32 tokens (179.2k tokens), in 3 stages",
        "order: streams; within ",
        "stage 1: max_epochs=0.5 holds down prose, legal, which reach it at the stage's end",
        "stage 2: pin fixes the share of prose",
        "stage 2: floor holds up the share of legal",
        "stage 3: nothing is drawn of legal, whose max_epochs are drawn before",
        "start of 16 ranks: ",
    ):
        assert said in text


def test_weights_that_are_not_computed_are_said_to_be_missing(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Nothing is trained; uniform weights are shown, and said to stand for others."""
    settings = settings_of(tmp_path, "run", "train.train_iters=60")
    typed(monkeypatch, "plan", "show", str(config_file), *settings, "--ranks", "64")
    said = capsys.readouterr().out
    assert "1 chameleon (NOT COMPUTED: uniform)" in said
    assert "`nemo-chameleon mixture compute` with the same settings computes them" in said
    assert "order: Megatron's blend" in said
    settings.append("data.stages=[{until: 0.5, max_epochs: 0.5}, {max_epochs: 0.5}]")
    settings.append("train.train_iters=120")
    typed(monkeypatch, "plan", "show", str(config_file), *settings, "--json")
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert "nothing is drawn from legal" in told.err
    assert (found["computed"], found["stages"][0]["computed"]) == (False, False)
    assert sum(entry["samples"] for entry in found["domains"].values()) == 960
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache").exists()


def test_costs_grow_with_ranks_and_with_the_run(config_file: Path, tmp_path: Path) -> None:
    """Each rank opens the indices, each node the domains; more samples make larger indices."""

    def found(ranks: int, *more: str) -> dict[str, Any]:
        settings = settings_of(tmp_path, "run", "data.mixture=uniform", *more)
        return outlook(load_config(str(config_file), settings), ranks)

    for order in ("megatron", "streams"):
        one, node, many = (found(n, f"data.order={order}")["start"] for n in (1, 8, 64))
        for_ranks, for_nodes = node["calls"] - one["calls"], 7 * 18 * 3
        assert for_ranks > 0
        assert many["calls"] - node["calls"] == 8 * for_ranks + for_nodes
        # In streams the ranks verify the indices together.
        assert (many["of_first_rank"] < one["of_first_rank"]) == (order == "streams")
        assert one["of_first_rank"] == one["calls"]
        long = found(1, f"data.order={order}", "train.train_iters=5000")
        assert long["indices"]["size"] > 2 * found(1, f"data.order={order}")["indices"]["size"]


def test_a_picture_has_the_largest_domains_and_the_others(tmp_path: Path) -> None:
    """Shares of each stage are what is drawn in it; names that mean something stay text."""
    names = [f"d{number}" for number in range(20)] + ["_a$b$", "c\x1bd"]
    stages = [{n: 1.0 + 30 * (n in names[20:]) for n in names}, dict.fromkeys(names[:15], 1.0)]
    plan = Plan(tuple(Stage(Mixture.static(weights), 1000) for weights in stages))
    found = {
        "seq_length": 2048,
        "domains": {n: {"samples": count} for n, count in plan.counts(2000).items()},
        "stages": [
            {"end": end, "samples": 1000, "computed": True}
            | {"domains": {n: {"samples": count} for n, count in stage.drawn.items()}}
            for stage, end in zip(plan.stages, (1000, 2000), strict=True)
        ],
    }
    edges, shares = shares_over_run(found)
    assert edges == [0, 1000, 2000]
    assert [*shares][:2] == ["_a$b$", "c\x1bd"]
    assert [*shares][-1] == "10 others"
    for at in range(2):
        assert sum(heights[at] for heights in shares.values()) == pytest.approx(1)
    assert shares["_a$b$"] == [plan.stages[0].drawn["_a$b$"] / 1000, 0]
    pytest.importorskip("matplotlib")
    draw_shares(found, str(tmp_path / "shares.svg"))
    text = (tmp_path / "shares.svg").read_text()
    for said in ("_a$b$", r"c\x1bd", "10 others", "tokens drawn"):
        assert said in text
    before = (tmp_path / "shares.svg").read_bytes()
    draw_shares(found, str(tmp_path / "shares.svg"))
    assert (tmp_path / "shares.svg").read_bytes() == before


def test_two_configurations_are_compared(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Ends of stages in words; weights and samples of the domains that differ in a table."""
    Mixture.static({"code": 1, "prose": 3}).save(tmp_path / "two.json")
    config = yaml.safe_load(config_file.read_text())
    config["data"]["mixture"] = "uniform"
    for name, until, mixture in (("a", 0.5, "uniform"), ("b", 0.75, str(tmp_path / "two.json"))):
        config["data"]["stages"] = [{"until": until}, {"mixture": mixture}]
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    one, two = str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")
    typed(monkeypatch, "plan", "diff", one, two, "train.train_iters=20")
    said = capsys.readouterr().out
    assert f"before: {one}: 160 samples in 2 stages, streams" in said
    assert "Stage 1 ends with sample 120 in place of 80." in said
    assert [line.split() for line in said.splitlines() if line.startswith("legal")] == [
        ["legal", "52", "40", "-12", "0.3333", "0.3333", "->", "-"]
    ]
    assert "10.00% of the samples go to another domain." in said
    typed(monkeypatch, "plan", "diff", one, one)
    assert "Both draw the same number of samples of each domain" in capsys.readouterr().out
    config["train"]["seed"] = 77
    config["data"]["order"] = "megatron"
    del config["data"]["stages"]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    typed(monkeypatch, "plan", "diff", one, str(tmp_path / "c.yaml"))
    said = capsys.readouterr().out
    assert "train.seed=77 in place of 1234" in said
    assert "The samples of a domain come in another order." in said


def test_a_run_is_compared_with_a_configuration(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A run's folder stands for the plan in its newest checkpoint, whatever its order is."""
    Mixture.static({"code": 5, "prose": 2, "legal": 1}).save(tmp_path / "three.json")
    files = (str(tmp_path / "three.json"), "uniform")
    settings = settings_of(tmp_path, "run", STAGES % files)
    drawn_on(1, config_file, settings, 2)
    place = tmp_path / "run" / "plan"
    for folder in (place, place / "iter_0000002"):
        typed(monkeypatch, "plan", "diff", str(folder), str(config_file), *settings)
        said = capsys.readouterr().out
        assert f"before: {place}/iter_0000002, after 16 samples: 48 samples in 3 stages" in said
        assert "Both draw the same number of samples of each domain in each stage." in said
    settings[-1] = "data.mixture=uniform"
    drawn_on(1, config_file, settings, 1)
    other = [*settings, f"data.mixture={files[0]}"]
    typed(monkeypatch, "plan", "diff", str(tmp_path / "run" / "uniform"), str(config_file), *other)
    said = capsys.readouterr().out
    assert "after 8 samples: 48 samples in 1 stage, Megatron's order" in said
    assert ["code", "16", "30", "+14"] in [line.split()[:4] for line in said.splitlines()]
    with pytest.raises(SystemExit):
        typed(monkeypatch, "plan", "diff", str(tmp_path / "run"), str(config_file))
    assert "has no checkpoint of a run: name the folder of a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "--ranks", "0"], "--ranks=0 must be at least 1"),
        (["show", "--picture", "x.png"], "--picture x.png must end in .svg"),
        (["show", "data.stages=[{until: 2}, {}]"], "is sample 0, rounded to global batches of 8"),
        (["build", "--processes", "0"], "--processes=0 must be at least 1"),
    ],
)
def test_wrong_arguments_are_one_line(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, arguments: list[str], says: str
) -> None:
    """An option or a stage that cannot be used is named, and nothing is shown."""
    action, *rest = arguments
    with pytest.raises(SystemExit):
        typed(monkeypatch, "plan", action, str(config_file), "data.mixture=uniform", *rest)
    said = capsys.readouterr()
    assert says in said.err
    assert said.err.count("\n") == 1
    assert not said.out


def test_settings_in_the_place_of_plans(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A setting before the second plan is not looked for as a file."""
    with pytest.raises(SystemExit):
        typed(monkeypatch, "plan", "diff", str(config_file), "train.seed=3")
    assert "train.seed=3 is a setting: name two plans first" in capsys.readouterr().err
    with pytest.raises(UserError, match="needs matplotlib"), monkeypatch.context() as patch:
        patch.setattr("nemo_chameleon.utils.picture.can_draw", lambda: False)
        draw_shares(
            {"stages": [], "domains": {}, "seq_length": 1}, str(config_file.with_suffix(".svg"))
        )
