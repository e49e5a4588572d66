"""provider/building.py: a run finds all that `plan build` has made, and makes nothing itself."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_indexed import write
from test_parts import documents_of
from test_plan import GLOBAL, STAGES, drawn_on, settings_of

from nemo_chameleon import Mixture, provider
from nemo_chameleon.config import load_config
from nemo_chameleon.config.schema import Config
from nemo_chameleon.data import cached
from nemo_chameleon.data.blend import validation_datasets
from nemo_chameleon.data.epochs import EpochDatasets
from nemo_chameleon.data.kinds import kind_of
from nemo_chameleon.provider.building import build
from nemo_chameleon.provider.outlook import outlook
from nemo_chameleon.utils.errors import UserError
from project import ROOT
from sft_data import write_jsonl, write_sft_config


def made_in(cache: Path) -> dict[str, tuple[int, int]]:
    """Return time and size of every file in a cache."""
    stats = {str(path): path.stat() for path in sorted(cache.rglob("*")) if path.is_file()}
    return {path: (stat.st_mtime_ns, stat.st_size) for path, stat in stats.items()}


def start(config: Config) -> None:
    """Open all data that the run of a configuration opens, as its trainer does."""
    domains = kind_of(config.data).open_domains(config.data, config.model.seq_length)
    run = provider.resolve_run(config, domains)
    dataset = run.training_dataset()
    for index in range(0, config.train.samples, 5):
        dataset[index]
    sizes = {"seq_length": config.model.seq_length, "seed": config.train.seed}
    for held_out in validation_datasets(config.data, run.domains, **sizes).values():
        held_out[0]


@pytest.fixture(params=["gpt", "sft"])
def either(
    request: pytest.FixtureRequest, config_file: Path, corpus: Path, tmp_path: Path
) -> tuple[Path, list[str]]:
    """Return a configuration to pretrain or to finetune, with a set of its own to evaluate on."""
    if request.param == "gpt":
        path = write(tmp_path / "other", documents_of(0, 20))
        return config_file, [f"data.validation.other.path={path}"]
    (tmp_path / "sft").mkdir()
    examples = [{"prompt": f"{n} times 2", "completion": str(2 * n)} for n in range(30)]
    path = str(write_jsonl(tmp_path / "other.jsonl", examples))
    settings = ["data.on_too_long=truncate", f"data.validation.other.path={path}"]
    return write_sft_config(corpus, tmp_path / "sft"), settings


@pytest.mark.parametrize(("order", "processes"), [("megatron", 1), ("streams", 2)])
def test_a_run_after_a_build_makes_nothing(
    either: tuple[Path, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    alone: None,
    order: str,
    processes: int,
) -> None:
    """Tokens, packs, and indices to train and to evaluate on are found as the build left them."""
    settings = [f"data.order={order}", "data.mixture=uniform", "train.train_iters=120"]
    settings += [f"data.cache={tmp_path / 'cache'}", *either[1]]
    config = load_config(either[0], settings)
    made = build(config, processes)
    before = made_in(tmp_path / "cache")
    assert made.files == len(before) > 0
    assert made.size == sum(size for _, size in before.values())

    def fail(folder: Path) -> Path:
        raise AssertionError(f"{folder} is made by the run")

    monkeypatch.setattr(cached, "begin", fail)
    start(config)
    assert made_in(tmp_path / "cache") == before
    assert build(config, 1).files == 0


def test_training_after_a_build(config_file: Path, tmp_path: Path) -> None:
    """A run of three stages with epochs of its own trains on what was built."""
    Mixture.static({"code": 1, "legal": 3}).save(tmp_path / "two.json")
    files = (str(tmp_path / "two.json"), "uniform")
    settings = settings_of(tmp_path, "run", STAGES.replace("28", "0.75") % files)
    settings += ["train.train_iters=90", "train.eval_iters=1", "train.eval_interval=100"]
    settings += ["checkpoint.save_interval=1000"]
    config = load_config(str(config_file), settings)
    built = build(config, 1)
    before = made_in(tmp_path / "cache")
    assert len(drawn_on(1, config_file, settings)) == 90 * GLOBAL
    assert made_in(tmp_path / "cache") == before
    # What `plan show` calculates is what was built.
    told = outlook(config, 1)["indices"]
    training = [f for f in before if "-train-" in f]
    assert told["folders"] == len({Path(file).parent for file in training}) > 3
    assert abs(told["size"] - sum(before[file][1] for file in training)) < 2500 * told["folders"]
    assert built.files == len(before)


def test_a_build_goes_on_where_it_was_killed(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is whole stays as it is, and only the rest is made."""
    settings = settings_of(tmp_path, "run", "data.mixture=uniform", "data.order=streams")
    config = load_config(str(config_file), settings)
    make, calls = EpochDatasets._make, list[str]()

    def killed(self: EpochDatasets, epoch: int, cache: str) -> None:
        make(self, epoch, cache)
        calls.append(self._domain.name)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(EpochDatasets, "_make", killed)
        build(config, 1)
    before = made_in(tmp_path / "cache")
    assert len({Path(file).parent for file in before}) == 1
    build(config, 1)
    after = made_in(tmp_path / "cache")
    assert before.items() <= after.items()
    assert len({Path(file).parent for file in after}) == 3


def test_a_change_nobody_planned_can_be_built(config_file: Path, tmp_path: Path) -> None:
    """A run that began in Megatron's order goes on by another mixture without making an index."""
    settings = settings_of(tmp_path, "run", "data.mixture=uniform")
    drawn_on(1, config_file, settings, 2)
    changed = [*settings, "data.stages=[{mixture: proportional}]"]
    changed += ["data.on_mixture_change=continue"]
    (tmp_path / "run" / "uniform").rename(tmp_path / "run" / "proportional")
    config = load_config(str(config_file), changed)
    shown = [stage["mixture"] for stage in outlook(config, 1)["stages"]]
    assert shown == ["begun before: static", "proportional"]
    assert build(config, 1).files > 0
    before = made_in(tmp_path / "cache")
    assert len(drawn_on(1, config_file, changed)) == 4 * GLOBAL
    assert made_in(tmp_path / "cache") == before


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("data.mixture=chameleon", "which are not computed yet: compute them with `nemo-chameleon"),
        ("engine=nemo", "engine=nemo makes the indices of Megatron's order in a folder of its own"),
        ("data.stages=[{until: 0.5}, {until: 0.5}]", "a stage must end after it begins"),
        ("train.train_iters=0", "train.train_iters=0 must be"),
    ],
)
def test_what_cannot_be_built_is_refused(
    config_file: Path, tmp_path: Path, setting: str, says: str
) -> None:
    """A build that could not help is one error with a next step, and makes nothing."""
    settings = settings_of(tmp_path, "run", "data.mixture=uniform", setting)
    with pytest.raises(UserError, match=says):
        build(load_config(str(config_file), settings), 1)
    assert not made_in(tmp_path) or not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_processes_end_with_a_build_that_is_killed(config_file: Path, tmp_path: Path) -> None:
    """After SIGKILL no process of the build goes on, and the same command makes the rest."""
    command = [sys.executable, "-m", "nemo_chameleon", "plan", "build", str(config_file)]
    command += settings_of(tmp_path, "run", "data.mixture=uniform", "data.order=streams")
    command += ["train.train_iters=4000", "--processes", "2"]
    running = subprocess.Popen(command, cwd=ROOT)
    place = tmp_path / "cache" / "indices"
    while not any("." not in path.name for path in place.glob("*")):
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    time.sleep(2)
    before = made_in(tmp_path / "cache")
    time.sleep(2)
    assert made_in(tmp_path / "cache") == before, "nobody writes any more"
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert "made" in done.stdout
    whole = {file: facts for file, facts in before.items() if ".tmp" not in file}
    assert whole.items() <= made_in(tmp_path / "cache").items()
