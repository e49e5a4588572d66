"""NeMo 2's own `llm.pretrain` draws by a mixture. `make test-nemo` runs these tests."""

import importlib.util
import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemo_chameleon import Mixture
from nemo_chameleon.distributed.lease import Lease
from project import ROOT, write_stages
from running import printed, samples_of, started

if importlib.util.find_spec("nemo") is None:
    pytest.skip("make test-nemo runs these", allow_module_level=True)
HERE = Path(__file__).parent
GOES_ON: dict[str, object] = {"resume_if_exists": True, "resume_ignore_no_checkpoint": True}


@pytest.fixture
def paths(corpus: Path) -> list[str]:
    """Return NeMo's own list of weights and prefixes."""
    return ["0.7", str(corpus / "code"), "0.3", str(corpus / "prose")]


def nemo(
    folder: Path,
    *,
    max_steps: int = 10,
    eval_iters: int = 0,
    log_dir: str = "log",
    resume: dict[str, object] = GOES_ON,
    finetune: bool = False,
    plan: dict[str, Any] | None = None,
    ranks: int = 1,
    **data: object,
) -> subprocess.CompletedProcess[str]:
    """Run `nemo_train.py`; its checkpoints are written to LOG_DIR/run/checkpoints.

    A run with a `plan` saves each step, and prints what it reads.
    """
    data = {key: str(value) if isinstance(value, Path) else value for key, value in data.items()}
    settings = {
        "data": {"index_mapping_dir": str(folder / "cache"), **data},
        "finetune": finetune,
        "plan": plan,
        "max_steps": max_steps,
        "eval_iters": eval_iters,
        "log_dir": str(folder / log_dir),
        "resume": resume,
    }
    file = folder / "settings.json"
    file.write_text(json.dumps(settings))
    return started(str(HERE / "nemo_train.py"), str(file), folder=folder, ranks=ranks)


def test_the_samples_drawn_and_nothing_else(
    tmp_path: Path, paths: list[str], mixture: Path
) -> None:
    """NeMo's own weights are drawn without `mixture`, and the mixture's with it.

    The dataset's configurations differ in the blend alone.
    """
    without = nemo(tmp_path, log_dir="without", paths=paths)
    with_it = nemo(tmp_path, log_dir="with", paths=paths, mixture=mixture)
    assert printed(without, "DRAWN") == [28, 12]
    assert printed(with_it, "DRAWN") == [10, 30]
    first, second = (printed(run, "CONFIGURED") for run in (without, with_it))
    assert {key for key in first if first[key] != second[key]} == {"blend"}
    assert first["blend"][0] == second["blend"][0]
    assert not list((tmp_path / "without").rglob("mixture.json"))


def test_a_run_goes_on_by_the_mixture_that_it_began_with(
    tmp_path: Path, paths: list[str], mixture: Path
) -> None:
    """The mixture is saved beside the checkpoints.

    A continued run refuses another mixture and shows both, unless on_mixture_change=accept.
    """
    printed(nemo(tmp_path, mixture=mixture), "DRAWN")
    checkpoints = tmp_path / "log" / "run" / "checkpoints"
    assert Mixture.load(checkpoints / "mixture.json").weights == {"code": 0.25, "prose": 0.75}
    other = tmp_path / "other.json"
    other.write_text(mixture.read_text().replace("0.25", "0.5").replace("0.75", "0.5"))
    last = next(folder for folder in checkpoints.iterdir() if folder.name.endswith("-last"))
    # The run continues in its own folder, or in a new one from the same checkpoint.
    elsewhere: dict[str, Any] = {"resume": {"resume_from_path": str(last)}, "log_dir": "another"}
    for where in ({}, elsewhere):
        refused = nemo(tmp_path, max_steps=20, paths=paths, mixture=other, **where)
        assert refused.returncode != 0
        assert "another mixture is asked for" in refused.stderr
        assert "0.2500" in refused.stderr and "0.5000" in refused.stderr
    accepted = nemo(tmp_path, max_steps=20, mixture=other, on_mixture_change="accept")
    assert printed(accepted, "DRAWN") == [40, 40]
    assert Mixture.load(checkpoints / "mixture.json").weights == {"code": 0.5, "prose": 0.5}


def test_computed_weights(tmp_path: Path, config_file: Path) -> None:
    """With `mixture="chameleon"` NeMo draws by the weights that compute_mixture.py wrote."""
    recipe = ROOT / "recipes" / "compute_mixture.py"
    command = [sys.executable, str(recipe), "--config", str(config_file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    weights = Mixture.load(config_file.parent / "out" / "mixture.json").weights
    run = nemo(tmp_path, mixture="chameleon", mixture_config=config_file)
    for count, weight in zip(printed(run, "DRAWN"), weights.values(), strict=True):
        assert abs(count - 40 * weight) <= 1


def test_the_training_split_of_several(
    corpus: Path, tmp_path: Path, paths: list[str], mixture: Path
) -> None:
    """When NeMo is given paths by split, the mixture changes the training set alone."""
    validation = [str(corpus / "legal")]
    given = {"train": paths, "validation": validation, "test": validation}
    run = nemo(tmp_path, paths=given, mixture=mixture, eval_iters=2)
    assert printed(run, "DRAWN") == [10, 30]
    assert f"val_loss_by_domain/{corpus / 'legal'}" in printed(run, "VALIDATED")
    assert printed(run, "CONFIGURED")["blend_per_split"][1:] == [[validation, None]] * 2


def test_validation_by_domain(tmp_path: Path, mixture: Path) -> None:
    """Each domain's own loss is logged.

    val_loss is the mean of these losses by the weights of the mixture.
    """
    losses = printed(nemo(tmp_path, max_steps=40, eval_iters=8, mixture=mixture), "VALIDATED")
    code, prose = (losses[f"val_loss_by_domain/{name}"] for name in ("code", "prose"))
    assert code != prose
    assert losses["val_loss"] == pytest.approx(0.25 * code + 0.75 * prose, abs=0.05)


def test_finetuning(tmp_path: Path, finetuning: tuple[Path, Path]) -> None:
    """`llm.finetune` draws packed chats, pairs and text by the mixture.

    It logs a validation loss for each of the domains.
    """
    mixture, config = finetuning
    config.write_text(config.read_text().replace("seq_length: 64", "seq_length: 32"))
    given: dict[str, Any] = {"mixture": mixture, "mixture_config": config, "finetune": True}
    run = nemo(tmp_path, eval_iters=2, **given)
    assert printed(run, "DRAWN") == [20, 12, 8]
    configured = printed(run, "CONFIGURED")
    assert (configured["packing"], configured["on_too_long"]) == (True, "truncate")
    losses = printed(run, "VALIDATED")
    assert all(0 < losses[f"val_loss_by_domain/{name}"] < 8 for name in ("pairs", "chats", "text"))
    saved = tmp_path / "log" / "run" / "checkpoints" / "mixture.json"
    assert Mixture.load(saved).weights == Mixture.load(mixture).weights
    files = [str(tmp_path / f"{name}.jsonl") for name in ("pairs", "chats", "text")]
    refused = nemo(tmp_path, paths=files, log_dir="other", **given)
    assert "finetuning domains are named in mixture_config" in refused.stderr


def test_engine_nemo(config_file: Path, mixture: Path) -> None:
    """The recipe with engine=nemo trains in NeMo by the mixture and saves it.

    When the mixture has changed, or another job has the run, the run does not continue.
    """
    mixture.write_text(mixture.read_text().replace("prose", "legal"))
    settings = yaml.safe_load(config_file.read_text())
    del settings["data"]["domains"]["prose"]
    settings["train"] |= {"train_iters": 5, "eval_iters": 1, "precision": "fp32"}
    settings["optimizer"] |= {"clip_grad": 0}
    config_file.write_text(yaml.safe_dump(settings))
    recipe = [str(HERE / "on_cpu.py"), str(ROOT / "recipes" / "pretrain_chameleon.py")]
    recipe += ["--config", str(config_file), "engine=nemo", f"data.mixture={mixture}"]
    run = started(*recipe, folder=config_file.parent)
    assert run.returncode == 0, run.stderr[-3000:]
    checkpoints = config_file.parent / "out" / "mine-nemo" / "checkpoints"
    assert Mixture.load(checkpoints / "mixture.json").weights == {"code": 0.25, "legal": 0.75}
    assert any(folder.name.endswith("-last") for folder in checkpoints.iterdir())
    from nemo.lightning import io

    last = next(folder for folder in checkpoints.iterdir() if folder.name.endswith("-last"))
    read = io.load_context(last / "context").extra["datamodule"]
    assert read.build_kwargs["blend"][1] == [0.25, 0.75]
    mixture.write_text(mixture.read_text().replace("0.25", "0.5").replace("0.75", "0.5"))
    refused = started(*recipe, folder=config_file.parent)
    assert refused.returncode == 2
    assert "another mixture is asked for" in refused.stderr
    lease = Lease(config_file.parent / "out" / "mine-nemo.lease", "it", "wait")
    lease.take()
    refused = started(*recipe, folder=config_file.parent)
    lease.release()
    assert refused.returncode == 2
    assert f"mine-nemo is in use by process {os.getpid()}" in refused.stderr


def test_nemo_runs_command_line(paths: list[str], mixture: Path) -> None:
    """A recipe takes the mixture's arguments and all of NeMo's own data module, and no others."""
    import nemo_run as run
    from nemo.collections import llm
    from nemo.collections.llm import PreTrainingDataModule
    from nemo_run.cli.cli_parser import ArgumentValueError, parse_cli_args

    from nemo_chameleon.engines.nemo import MixtureDataModule

    nemos = inspect.signature(PreTrainingDataModule).parameters
    assert set(nemos) <= set(inspect.signature(MixtureDataModule).parameters)
    recipe = run.Partial(llm.pretrain, data=run.Config(MixtureDataModule, paths=paths))
    overrides = ["data.seq_length=64", "data.mixture_config=mine.yaml"]
    for wanted in ("chameleon", str(mixture)):
        data = parse_cli_args(recipe, [f"data.mixture={wanted}", *overrides]).data
        assert (data.mixture, data.mixture_config) == (wanted, "mine.yaml")
        assert (data.seq_length, data.paths) == (64, paths)
    with pytest.raises(ArgumentValueError, match="mixtur"):
        parse_cli_args(recipe, ["data.mixtur=chameleon"])


def test_nemo_writes_the_data_module_and_reads_it(
    tmp_path: Path, paths: list[str], mixture: Path
) -> None:
    """A checkpoint holds the weights themselves, so that its reader needs no mixture file."""
    import fiddle
    from nemo.lightning import io
    from nemo_train import Tokenizer

    from nemo_chameleon.engines.nemo import MixtureDataModule

    io.track_io(Tokenizer)
    data = MixtureDataModule(
        paths, mixture=str(mixture), seq_length=32, split="90,10,0", tokenizer=Tokenizer()
    )
    data.io_dump(tmp_path / "context", yaml_attrs=[])
    mixture.unlink()
    read = io.load(tmp_path / "context", MixtureDataModule)
    assert data.draw is not None
    assert type(read) is MixtureDataModule
    assert read.build_kwargs["blend"] == data.build_kwargs["blend"] == list(data.draw.blend)
    assert fiddle.ordered_arguments(read.__io__)["seq_length"] == 32


UNIFORM = {"code": 1, "prose": 1, "legal": 1}
TWO, THREE = {"code": 1, "prose": 3}, {"code": 5, "prose": 2, "legal": 1}


def test_a_plan_of_three_stages(tmp_path: Path, config_file: Path) -> None:
    """NeMo's `llm.pretrain` draws each stage to the sample, and no sample twice.

    A run that is killed at the end of a stage or beside it, and goes on on two ranks, draws what an
    undisturbed run draws. Domains are still validated on.
    """
    write_stages(config_file, UNIFORM, TWO, THREE, samples=12, split="90,10,0")
    given: dict[str, Any] = {"mixture": "uniform", "mixture_config": config_file}
    whole = nemo(tmp_path, plan={"first": 0, "last": None}, eval_iters=1, **given)
    losses = printed(whole, "VALIDATED")
    assert all(f"val_loss_by_domain/{name}" in losses for name in UNIFORM)
    assert printed(whole, "CONFIGURED")["split_matrix"][0] is None
    seen = samples_of(whole)
    for start, stop, counts in ((0, 12, [4, 4, 4]), (12, 24, [3, 9, 0]), (24, 40, [10, 4, 2])):
        positions = [position for position, _ in seen[start:stop]]
        assert [positions.count(at) for at in range(3)] == counts
    assert len(set(seen)) == 40
    for last in (3, 4):
        again = {**given, "log_dir": f"killed{last}"}
        begun = nemo(tmp_path, plan={"first": 0, "last": last}, **again)
        shutil.copytree(tmp_path / f"killed{last}", tmp_path / f"changed{last}")
        rest = nemo(tmp_path, plan={"first": last, "last": None}, ranks=2, **again)
        assert samples_of(begun, killed=True) + samples_of(rest) == seen
    write_stages(config_file, UNIFORM, {"legal": 1, "prose": 1}, samples=12)
    again = {**given, "log_dir": "changed4"}
    refused = nemo(tmp_path, **again)
    assert "is of a run with another plan: 2 stages in place of 3 stages" in refused.stderr
    again["on_mixture_change"] = "continue"
    now = samples_of(nemo(tmp_path, plan={"first": 4, "last": None}, **again))
    assert [[position for position, _ in now].count(at) for at in range(3)] == [0, 12, 12]
    assert len({*seen[:16], *now}) == 40, "no sample comes twice"


def test_finetuning_by_a_plan(tmp_path: Path, finetuning: tuple[Path, Path]) -> None:
    """NeMo's `llm.finetune` draws the packs of each stage to the sample, and none twice."""
    _, config = finetuning
    config.write_text(config.read_text().replace("seq_length: 64", "seq_length: 32"))
    write_stages(config, {"pairs": 1, "chats": 1, "text": 2}, {"pairs": 1, "chats": 3}, samples=12)
    given: dict[str, Any] = {"mixture": "uniform", "mixture_config": config, "finetune": True}
    given |= {"plan": {"first": 0, "last": None}, "max_steps": 5, "eval_iters": 2}
    run = nemo(tmp_path, **given)
    seen = samples_of(run)
    positions = [position for position, _ in seen]
    assert [positions[:12].count(at) for at in range(3)] == [3, 3, 6]
    assert [positions[12:].count(at) for at in range(3)] == [2, 6, 0]
    assert len(set(seen)) == 20
    losses = printed(run, "VALIDATED")
    assert all(f"val_loss_by_domain/{name}" in losses for name in ("pairs", "chats", "text"))


def test_engine_nemo_follows_a_plan(config_file: Path) -> None:
    """The recipe with engine=nemo trains by stages, and refuses others in words."""
    write_stages(config_file, UNIFORM, TWO, samples=24)
    recipe = [str(HERE / "on_cpu.py"), str(ROOT / "recipes" / "pretrain_chameleon.py")]
    recipe += ["--config", str(config_file), "engine=nemo", "train.precision=fp32"]
    recipe += ["optimizer.clip_grad=0"]
    run = started(*recipe, folder=config_file.parent)
    assert run.returncode == 0, run.stderr[-3000:]
    checkpoints = config_file.parent / "out" / "plan-nemo" / "checkpoints"
    assert any(folder.name.endswith("-last") for folder in checkpoints.iterdir())
    stages = json.loads((checkpoints / "plan.json").read_text())["stages"]
    assert [stage["samples"] for stage in stages] == [24, 24]
    write_stages(config_file, UNIFORM, TWO, samples=32)
    refused = started(*recipe, folder=config_file.parent)
    assert refused.returncode == 2
    assert "stage 1 ends with sample 32 in place of 24" in refused.stderr
