"""Megatron-Bridge's own `pretrain` draws by a mixture. `make test-bridge` runs these tests."""

import importlib.util
import json
import os
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

if importlib.util.find_spec("megatron.bridge") is None:
    pytest.skip("make test-bridge runs these", allow_module_level=True)
HERE = Path(__file__).parent


def bridge(
    corpus: Path,
    folder: Path,
    *overrides: str,
    train_iters: int = 10,
    save: str | None = None,
    finetune: bool = False,
    plan: dict[str, Any] | None = None,
    ranks: int = 1,
    **dataset: object,
) -> subprocess.CompletedProcess[str]:
    """Run `bridge_train.py`; the blend's own weights are 0.7 and 0.3.

    A run with a `plan` saves each iteration, and prints what it reads.
    """
    blend = [[str(corpus / "code"), str(corpus / "prose")], [0.7, 0.3]]
    checkpoint = {"save": save, "load": save, "save_interval": 1 if plan else 1000}
    given = {"blend": blend, "split": "90,10,0", "path_to_cache": str(folder / "cache"), **dataset}
    settings = {
        "dataset": dataset if finetune else given,
        "checkpoint": checkpoint,
        "train_iters": train_iters,
        "finetune": finetune,
        "plan": plan,
        "eval_iters": 1 if plan else 0,
    }
    file = folder / "settings.json"
    file.write_text(json.dumps(settings))
    return started(str(HERE / "bridge_train.py"), str(file), *overrides, ranks=ranks)


def test_the_samples_drawn_and_nothing_else(corpus: Path, tmp_path: Path, mixture: Path) -> None:
    """The blend's own weights are drawn without `dataset.mixture`, and the mixture's with it.

    The saved configurations differ in the blend and in the mixture alone.
    """
    without = bridge(corpus, tmp_path, save=str(tmp_path / "without"))
    override = f"dataset.mixture={mixture}"
    with_it = bridge(corpus, tmp_path, override, save=str(tmp_path / "with"))
    assert printed(without, "DRAWN") == [28, 12]
    assert printed(with_it, "DRAWN") == [10, 30]
    first, second = (
        yaml.safe_load((tmp_path / name / "iter_0000010" / "run_config.yaml").read_text())
        for name in ("without", "with")
    )
    changed = {
        f"{section}.{key}"
        for section in first
        if isinstance(first[section], dict)
        for key in first[section]
        if first[section][key] != second[section][key]
    }
    assert changed - {"checkpoint.save", "checkpoint.load"} == {"dataset.blend", "dataset.mixture"}
    assert not (tmp_path / "without" / "mixture.json").exists()


def test_a_run_goes_on_by_the_mixture_that_it_began_with(
    corpus: Path, tmp_path: Path, mixture: Path
) -> None:
    """The mixture is saved beside the checkpoints.

    A continued run refuses another mixture and shows both, unless on_mixture_change=accept.
    """
    save = str(tmp_path / "run")
    printed(bridge(corpus, tmp_path, f"dataset.mixture={mixture}", save=save), "DRAWN")
    assert Mixture.load(tmp_path / "run" / "mixture.json").weights == {"code": 0.25, "prose": 0.75}
    other = tmp_path / "other.json"
    other.write_text(mixture.read_text().replace("0.25", "0.5").replace("0.75", "0.5"))
    asked = f"dataset.mixture={other}"
    refused = bridge(corpus, tmp_path, asked, save=save, train_iters=20)
    assert refused.returncode != 0
    last = refused.stderr[-2000:]
    assert "another mixture is asked for" in last
    assert "0.2500" in last and "0.5000" in last
    accept = "dataset.on_mixture_change=accept"
    accepted = bridge(corpus, tmp_path, asked, accept, save=save, train_iters=20)
    assert printed(accepted, "DRAWN") == [40, 40]


def test_computed_weights(corpus: Path, tmp_path: Path, config_file: Path) -> None:
    """With `dataset.mixture=chameleon` Bridge draws by the weights of compute_mixture.py."""
    recipe = ROOT / "recipes" / "compute_mixture.py"
    command = [sys.executable, str(recipe), "--config", str(config_file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    weights = Mixture.load(config_file.parent / "out" / "mixture.json").weights
    run = bridge(
        corpus,
        tmp_path,
        "dataset.mixture=chameleon",
        f"dataset.mixture_config={config_file}",
        blend=None,
    )
    for count, weight in zip(printed(run, "DRAWN"), weights.values(), strict=True):
        assert abs(count - 40 * weight) <= 1


def test_engine_bridge(corpus: Path, config_file: Path, mixture: Path) -> None:
    """The recipe with engine=bridge trains in Bridge by the mixture and saves it.

    When the mixture has changed, or another job has the run, the run does not continue.
    """
    mixture.write_text(mixture.read_text().replace("prose", "legal"))
    settings = yaml.safe_load(config_file.read_text())
    del settings["data"]["domains"]["prose"]
    settings["train"] |= {"train_iters": 5, "eval_iters": 1}
    config_file.write_text(yaml.safe_dump(settings))
    recipe = [str(HERE / "on_cpu.py"), "recipes/pretrain_chameleon.py", "--config"]
    recipe += [str(config_file), "engine=bridge", "train.precision=fp32", "optimizer.clip_grad=0"]
    run = started(*recipe, f"data.mixture={mixture}")
    assert run.returncode == 0, run.stderr[-3000:]
    folder = config_file.parent / "out" / "mine-bridge"
    assert Mixture.load(folder / "mixture.json").weights == {"code": 0.25, "legal": 0.75}
    kept = yaml.safe_load((folder / "iter_0000005" / "run_config.yaml").read_text())
    assert kept["dataset"]["blend"][1] == [0.25, 0.75]
    assert kept["model"]["hidden_size"] == 32
    mixture.write_text(mixture.read_text().replace("0.25", "0.5").replace("0.75", "0.5"))
    refused = started(*recipe, f"data.mixture={mixture}")
    assert refused.returncode == 2
    assert "another mixture is asked for" in refused.stderr
    lease = Lease(config_file.parent / "out" / "mine-bridge.lease", "it", "wait")
    lease.take()
    refused = started(*recipe, f"data.mixture={mixture}")
    lease.release()
    assert refused.returncode == 2
    assert f"mine-bridge is in use by process {os.getpid()}" in refused.stderr


def test_a_mixture_that_was_not_applied_is_not_ignored(corpus: Path) -> None:
    """Bridge refuses to finalize a configuration whose mixture was not put into the blend."""
    import stand_in

    stand_in.without_transformer_engine()
    from nemo_chameleon.engines.bridge import MixtureDatasetConfig

    config = MixtureDatasetConfig(seq_length=32, random_seed=1, mixture="chameleon")
    with pytest.raises(ValueError, match="apply_mixture"):
        config.finalize()


def test_finetuning(corpus: Path, tmp_path: Path, finetuning: tuple[Path, Path]) -> None:
    """Bridge's `finetune` draws packed chats, pairs and text by the mixture and saves it.

    A continued run refuses another mixture.
    """
    mixture, config = finetuning
    config.write_text(config.read_text().replace("seq_length: 64", "seq_length: 32"))
    save = str(tmp_path / "run")
    given: dict[str, Any] = {
        "mixture": str(mixture),
        "mixture_config": str(config),
        "finetune": True,
    }
    assert printed(bridge(corpus, tmp_path, save=save, **given), "DRAWN") == [20, 12, 8]
    assert Mixture.load(tmp_path / "run" / "mixture.json").weights == Mixture.load(mixture).weights
    written = yaml.safe_load((tmp_path / "run" / "iter_0000010" / "run_config.yaml").read_text())
    assert written["dataset"]["blend"][1] == [0.5, 0.3, 0.2]
    asked = "dataset.mixture=uniform"
    refused = bridge(corpus, tmp_path, asked, save=save, train_iters=20, **given)
    assert "another mixture is asked for" in refused.stderr


UNIFORM = {"code": 1, "prose": 1, "legal": 1}
TWO, THREE = {"code": 1, "prose": 3}, {"code": 5, "prose": 2, "legal": 1}


def test_a_plan_of_three_stages(corpus: Path, tmp_path: Path, config_file: Path) -> None:
    """Bridge's `pretrain` draws each stage to the sample, and no sample twice.

    A run that is killed at the end of a stage or beside it, and goes on on two ranks, draws what an
    undisturbed run draws. Bridge builds no training set of its own.
    """
    write_stages(config_file, UNIFORM, TWO, THREE, samples=12, split="90,10,0")
    given: dict[str, Any] = {"mixture": "uniform", "mixture_config": str(config_file)}
    given |= {"blend": None, "train_iters": 10}
    whole = bridge(corpus, tmp_path, plan={"first": 0, "last": None}, **given)
    assert printed(whole, "BUILT")[0] is None
    seen = samples_of(whole)
    for start, stop, counts in ((0, 12, [4, 4, 4]), (12, 24, [3, 9, 0]), (24, 40, [10, 4, 2])):
        positions = [position for position, _ in seen[start:stop]]
        assert [positions.count(at) for at in range(3)] == counts
    assert len(set(seen)) == 40
    for last in (3, 4):
        again = {**given, "save": str(tmp_path / f"killed{last}")}
        begun = bridge(corpus, tmp_path, plan={"first": 0, "last": last}, **again)
        rest = bridge(corpus, tmp_path, plan={"first": last, "last": None}, ranks=2, **again)
        assert samples_of(begun, killed=True) + samples_of(rest) == seen
    write_stages(config_file, UNIFORM, {"legal": 1, "prose": 1}, samples=12)
    back = "checkpoint.ckpt_step=4"
    refused = bridge(corpus, tmp_path, back, **again)
    assert "is of a run with another plan: 2 stages in place of 3 stages" in refused.stderr
    goes_on = (back, "dataset.on_mixture_change=continue")
    changed = bridge(corpus, tmp_path, *goes_on, plan={"first": 4, "last": None}, **again)
    now = samples_of(changed)
    assert [[position for position, _ in now].count(at) for at in range(3)] == [0, 12, 12]
    assert len({*seen[:16], *now}) == 40, "no sample comes twice"


def test_finetuning_by_a_plan(corpus: Path, tmp_path: Path, finetuning: tuple[Path, Path]) -> None:
    """Bridge's `finetune` draws the packs of each stage to the sample, and none twice."""
    _, config = finetuning
    config.write_text(config.read_text().replace("seq_length: 64", "seq_length: 32"))
    write_stages(config, {"pairs": 1, "chats": 1, "text": 2}, {"pairs": 1, "chats": 3}, samples=12)
    given: dict[str, Any] = {"mixture": "uniform", "mixture_config": str(config), "finetune": True}
    given |= {"save": str(tmp_path / "run"), "plan": {"first": 0, "last": None}}
    seen = samples_of(bridge(corpus, tmp_path, train_iters=5, **given))
    positions = [position for position, _ in seen]
    assert [positions[:12].count(at) for at in range(3)] == [3, 3, 6]
    assert [positions[12:].count(at) for at in range(3)] == [2, 6, 0]
    assert len(set(seen)) == 20


def test_engine_bridge_follows_a_plan(config_file: Path) -> None:
    """The recipe with engine=bridge trains by stages, and refuses others in words."""
    write_stages(config_file, UNIFORM, TWO, samples=24)
    recipe = [str(HERE / "on_cpu.py"), "recipes/pretrain_chameleon.py", "--config"]
    recipe += [str(config_file), "engine=bridge", "train.precision=fp32", "optimizer.clip_grad=0"]
    run = started(*recipe)
    assert run.returncode == 0, run.stderr[-3000:]
    folder = config_file.parent / "out" / "plan-bridge"
    assert (folder / "iter_0000006").is_dir()
    stages = json.loads((folder / "plan.json").read_text())["stages"]
    assert [stage["samples"] for stage in stages] == [24, 24]
    write_stages(config_file, UNIFORM, TWO, samples=32)
    refused = started(*recipe)
    assert refused.returncode == 2
    assert "stage 1 ends with sample 32 in place of 24" in refused.stderr
