"""train/report.py, mixture/tables.py: tables show the results of runs, good or bad."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from nemo_chameleon import Mixture, cli
from nemo_chameleon.mixture.tables import expected_losses, show_mixture
from nemo_chameleon.train.report import compare, read_result
from nemo_chameleon.utils.errors import UserError

UNIFORM: dict[str, Any] = {
    "run": "uniform",
    "parameters": 1_500_000,
    "iterations": 100,
    "tokens": 204_800,
    "seconds": 12.3,
    "loss": 2.5,
    "domains": {
        "wiki": {
            "weight": 0.5,
            "tokens": 1_200_000,
            "samples": 800,
            "epochs": 0.085,
            "loss": 2.0,
            "perplexity": 7.39,
        },
        "code": {
            "weight": 0.5,
            "tokens": 300_000,
            "samples": 800,
            "epochs": 0.34,
            "loss": 1.0,
            "perplexity": 2.72,
        },
    },
    "macro": {"loss": 1.5, "perplexity": 5.05},
}


def other(wiki: float, code: float) -> dict[str, Any]:
    """Return the result of a second run with these losses."""
    run = copy.deepcopy(UNIFORM)
    run["run"] = "chameleon"
    run["domains"]["wiki"]["loss"], run["domains"]["code"]["loss"] = wiki, code
    run["macro"] = {"loss": (wiki + code) / 2, "perplexity": 4.04}
    return run


def test_one_run() -> None:
    """The table has one row per domain, and the means below them."""
    lines = compare([UNIFORM]).splitlines()
    assert lines[0].split() == ["domain", "tokens", "weight", "samples", "epochs", "perplexity"]
    assert lines[2].split() == ["wiki", "1.2M", "0.500", "800", "0.09", "7.39"]
    assert lines[5].split() == ["macro", "perplexity", "5.05"]
    assert "1.5M parameters, 204.8k tokens in 100 iterations" in lines[-1]


def test_two_runs_say_who_won() -> None:
    """The report says in how many domains the second run is better, whether in all or in some."""
    assert "lower perplexity in 2 of 2 domains" in compare([UNIFORM, other(1.9, 0.9)])
    mixed = compare([UNIFORM, other(1.9, 1.3)])
    assert "lower perplexity in 1 of 2 domains" in mixed
    assert "macro perplexity -20.0%, mean loss +0.1000 nats" in mixed
    assert "not drawn from" not in mixed


def test_sets_that_are_not_drawn_from() -> None:
    """Sets that both runs were evaluated on have rows of their own, and the report counts them."""
    one, two = copy.deepcopy(UNIFORM), other(1.9, 1.3)
    one["validation"] = {
        "news": {"loss": 2.0, "perplexity": 7.4},
        "law": {"loss": 1, "perplexity": 3},
    }
    two["validation"] = {
        "news": {"loss": 1.5, "perplexity": 4.5},
        "law": {"loss": 2, "perplexity": 7},
    }
    said = compare([one, two])
    assert ["news", "7.40", "4.50"] in [line.split() for line in said.splitlines()]
    assert "It has the lower perplexity in 1 of 2 sets that are not drawn from." in said
    del two["validation"]["law"]
    assert "perplexity in 1 of 1 sets that are not drawn from." in compare([one, two])
    del two["validation"]
    assert "not drawn from" not in compare([one, two])


def test_run_without_evaluation() -> None:
    """A run with eval_iters=0 has a table without perplexities."""
    run = copy.deepcopy(UNIFORM)
    run["macro"] = {}
    for domain in run["domains"].values():
        del domain["loss"], domain["perplexity"]
    assert "wiki" in compare([run])
    assert "domains;" not in compare([UNIFORM, run])


def test_other_domains_are_refused() -> None:
    """Two runs over different domains have no common table."""
    run = other(1.0, 1.0)
    run["domains"]["books"] = run["domains"].pop("code")
    with pytest.raises(UserError, match="different domains"):
        compare([UNIFORM, run])


def test_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`nemo-chameleon report` reads folders; one without a result ends with exit code 2."""
    (tmp_path / "result.json").write_text(json.dumps(UNIFORM))
    monkeypatch.setattr("sys.argv", ["nemo-chameleon", "report", str(tmp_path)])
    cli.main()
    assert "wiki" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["nemo-chameleon", "report", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "holds no finished run" in capsys.readouterr().err
    with pytest.raises(UserError, match="is not the result of a run"):
        (tmp_path / "result.json").write_text("{")
        read_result(tmp_path)
    for partial in ("[]", "{}", '{"domains": {"a": {}}}'):
        (tmp_path / "result.json").write_text(partial)
        with pytest.raises(UserError, match="is not the result of a run"):
            read_result(tmp_path)


OLD = Mixture(
    {"wiki": 0.5, "code": 0.3, "law": 0.2},
    domains={"wiki": {"tokens": 1_200_000, "score": 0.25, "heaviest_share": 0.43}},
    uncertainty={"wiki": [0.4, 0.6]},
    method={"name": "chameleon", "ridge": 0.3},
)
NEW = Mixture({"wiki": 0.6, "code": 0.3, "web": 0.1}, method={"name": "chameleon", "ridge": 1.0})


def nemo_chameleon(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Run the command line in this process."""
    monkeypatch.setattr("sys.argv", ["nemo-chameleon", *arguments])
    cli.main()


def test_show_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`mixture show` lists the heaviest domain first, with what is known of it."""
    OLD.save(tmp_path / "old.json")
    nemo_chameleon(monkeypatch, "mixture", "show", str(tmp_path / "old.json"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].split() == ["wiki", "0.5000", "0.4000-0.6000", "0.2500", "43.0%", "1.2M"]
    assert lines[4].split() == ["code", "0.3000", "-", "-", "-", "-"]
    assert lines[6] == "3 domains; effective number of domains: 2.8"
    assert lines[7] == "method: name chameleon, ridge 0.3"


@pytest.mark.parametrize(("objective", "favoured"), [("pretrain", "low"), ("finetune", "high")])
def test_expected_losses(objective: str, favoured: str) -> None:
    """Domains above an equal share should gain, those below it pay; `mixture show` says so too."""
    mixture = Mixture({"a": 0.25, "b": 0.15, "c": 0.5, "d": 0.1}, objective=objective)
    head, gain, pay, other = expected_losses(mixture)
    assert head.startswith(
        f"expected from these weights, which favour domains with {favoured} scores"
    )
    assert gain == "  a lower loss than with uniform weights: c (2.00)"
    assert pay == "  a higher loss than with uniform weights: d (0.40), b (0.60)"
    assert other.startswith("  other text: a lower loss where it is like the former domains")
    assert show_mixture(mixture).endswith("\n".join(["", head, gain, pay, other]))


def test_nothing_is_expected_of_weights_without_scores() -> None:
    """Nothing is expected of weights set by hand or nearly equal; of many, eight are named."""
    assert expected_losses(Mixture.static({"a": 3, "b": 1})) == []
    assert expected_losses(Mixture({"a": 0.501, "b": 0.499}, objective="pretrain")) == []
    many = {"first": 0.55} | {f"d{i}": 0.05 for i in range(9)}
    _, _, pay, _ = expected_losses(Mixture(many, objective="pretrain"))
    assert pay.endswith("d6 (0.50), d7 (0.50), 1 more")


def test_diff_mixtures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`mixture diff` lists the largest change first, domains that came or went, and settings."""
    OLD.save(tmp_path / "old.json")
    NEW.save(tmp_path / "new.json")
    files = [str(tmp_path / f"{name}.json") for name in ("old", "new")]
    nemo_chameleon(monkeypatch, "mixture", "diff", *files)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["law", "0.2000", "-", "-0.2000"]
    assert lines[5].split() == ["code", "0.3000", "0.3000", "+0.0000"]
    assert lines[6] == "0.2000 of the samples go to another domain"
    assert lines[7] == "method ridge: 0.3 -> 1.0"


def test_validate_mixtures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`mixture validate` names every bad file and ends with exit code 2."""
    OLD.save(tmp_path / "good.json")
    (tmp_path / "bad.json").write_text('{"format": 1, "weights": {"a": 0.5}}')
    nemo_chameleon(monkeypatch, "mixture", "validate", str(tmp_path / "good.json"))
    assert "3 domains, valid" in capsys.readouterr().out
    files = [str(tmp_path / f"{name}.json") for name in ("bad", "good", "none")]
    with pytest.raises(SystemExit) as stop:
        nemo_chameleon(monkeypatch, "mixture", "validate", *files)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.count("error: ") == 2
    assert "good.json: 3 domains" in captured.out


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (("domains", "wiki", "loss"), "it has no 'loss'"),
        (("macro",), "it has no 'macro'"),
        (("macro", "perplexity"), "it has no 'perplexity'"),
    ],
)
def test_results_that_were_edited(path: tuple[str, ...], says: str, tmp_path: Path) -> None:
    """A result that lacks what a comparison of two needs is refused when it is read."""
    result = copy.deepcopy(UNIFORM)
    *above, last = path
    place = result
    for key in above:
        place = place[key]
    del place[last]
    (tmp_path / "result.json").write_text(json.dumps(result))
    with pytest.raises(UserError, match=says):
        read_result(tmp_path)
    (tmp_path / "result.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="nested too deeply"):
        read_result(tmp_path)


def test_layers_without_the_one_that_was_used() -> None:
    """A file with weights of every layer is shown, though somebody removed the layer's number."""
    layers = {"1": {"a": 0.25, "b": 0.75}}
    mixture = Mixture({"a": 0.5, "b": 0.5}, method={"name": "chameleon", "layers": layers})
    assert show_mixture(mixture).splitlines()[-1].split() == [
        "moved",
        "from",
        "these",
        "weights",
        "0.2500",
    ]
