"""The recipe as people start it: alone, on several ranks, again, killed, and with wrong input.

Most tests run on the forked ranks of `ranks`; the slow ones run under torchrun itself.
"""

import json
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from safetensors.numpy import load_file

import ranks
from nemo_chameleon import Mixture
from project import RECIPE, ROOT, Console, Launch


def weights_text(mixture: Path) -> str:
    """Return the bytes of the weights in a mixture file."""
    text = mixture.read_text()
    return text[text.index('"weights"') : text.index("}")]


def result(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return facts


class Torchrun:
    """The recipe on ranks of a real torchrun, with the methods of `ranks.Ranks`."""

    def __init__(self, script: Path, arguments: list[str], processes: int) -> None:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc_per_node={processes}", str(script), *arguments]
        null = subprocess.DEVNULL
        self.process = subprocess.Popen(command, stdout=null, stderr=null, cwd=ROOT)

    def poll(self) -> bool:
        return self.process.poll() is not None

    def wait(self, timeout: float) -> int:
        return self.process.wait(timeout)

    def send(self, rank: int, number: int) -> None:
        workers = psutil.Process(self.process.pid).children()
        sorted(workers, key=lambda worker: worker.pid)[rank].send_signal(number)

    def kill(self) -> None:
        """Kill the ranks and torchrun itself."""
        torchrun = psutil.Process(self.process.pid)
        for member in [*torchrun.children(recursive=True), torchrun]:
            member.kill()
        self.process.wait()


Begin = Callable[..., Torchrun | ranks.Ranks]


@pytest.fixture(
    params=[
        pytest.param(ranks.start_script, id="launch"),
        pytest.param(Torchrun, id="torchrun", marks=pytest.mark.slow),
    ]
)
def begin(request: pytest.FixtureRequest, config_file: Path) -> Begin:
    """Return a function that starts the recipe on two ranks and returns once `until()` is true."""

    def start(*overrides: str, until: Callable[[], bool]) -> Torchrun | ranks.Ranks:
        arguments = ["--config", str(config_file), *overrides]
        begun: Torchrun | ranks.Ranks = request.param(RECIPE, arguments, processes=2)
        deadline = time.monotonic() + 120
        while not until():
            assert time.monotonic() < deadline
            assert not begun.poll()
            time.sleep(0.01)
        return begun

    return start


def test_chameleon_from_end_to_end_and_at_any_tensor_parallel_size(
    start: Launch, console: Console, tmp_path: Path
) -> None:
    """Tensor parallel sizes 1 and 2 give one proxy loss and one set of embeddings and weights.

    Two runs at size 2 give the same bytes, and the base model draws by these weights.
    """
    tensor = "proxy.parallel.tensor_model_parallel_size=2"
    one, two, again = (tmp_path / name for name in ("one", "two", "again"))
    start(f"output={one}")
    start(f"output={two}", tensor, processes=2)
    start(f"output={again}", tensor, processes=2)

    loss = {folder: result(folder / "proxy")["loss"] for folder in (one, two)}
    assert loss[one] == pytest.approx(loss[two], abs=1e-5)
    embeddings = {folder: load_file(folder / "mixture.safetensors") for folder in (one, two)}
    for name, embedding in embeddings[one].items():
        scale = np.abs(embedding).max()
        np.testing.assert_allclose(embeddings[two][name], embedding, rtol=0, atol=1e-4 * scale)
    weights = {
        folder: json.loads((folder / "mixture.json").read_text())["weights"]
        for folder in (one, two)
    }
    assert weights[one] == pytest.approx(weights[two], abs=1e-4)
    assert weights_text(two / "mixture.json") == weights_text(again / "mixture.json")

    base = result(two / "chameleon")
    assert base["loss"] == pytest.approx(result(one / "chameleon")["loss"], abs=1e-4)
    for name, domain in base["domains"].items():
        assert abs(domain["samples"] - 48 * weights[two][name]) <= 1

    # Each process embeds a part of a new domain's windows, without tensor parallelism.
    file, prose = two / "mixture.json", json.loads((two / "mixture.json").read_text())["domains"]
    console("mixture", "remove", str(file), "prose")
    console("mixture", "add", str(file), f"prose={prose['prose']['path']}", processes=2)
    after = json.loads(file.read_text())["weights"]
    assert after == pytest.approx(weights[two], abs=1e-4)
    assert list(after) == ["code", "legal", "prose"]


def test_a_mixture_computed_apart_serves_the_run(launch: Launch, config_file: Path) -> None:
    """train_proxy.py and compute_mixture.py need no settings of the base model.

    Each recipe finds what the one before it wrote, and does not compute it again.
    """
    settings = yaml.safe_load(config_file.read_text())
    base = {key: settings.pop(key) for key in ("model", "train", "optimizer")}
    config_file.write_text(yaml.safe_dump(settings))
    written = config_file.parent / "out" / "mixture.json"
    train_proxy, compute = (
        RECIPE.with_name(f"{name}.py") for name in ("train_proxy", "compute_mixture")
    )
    launch(recipe=train_proxy)
    assert not written.exists()
    assert "proxy: resuming from" in (done := launch(recipe=compute)).stdout
    text = written.read_text()
    assert f"{Mixture.load(written).weights['code']:.4f}" in done.stdout
    assert not (config_file.parent / "out" / "chameleon").exists()
    assert "no proxy is needed" in launch(recipe=train_proxy).stdout
    config_file.write_text(yaml.safe_dump(settings | base))
    assert f"weights from {written}" in launch("data.mixture=chameleon").stdout
    assert written.read_text() == text


AS_A_HOST = """
import os, sys
import torch
import torch.distributed as dist
from nemo_chameleon.engines import host

if __name__ == "__main__":
    draw = host.resolve("chameleon", config=sys.argv[2])
    assert "CUDA_DEVICE_MAX_CONNECTIONS" not in os.environ
    dist.init_process_group("gloo")
    for ranks in ([0, 1], [0], [1], [0, 1]):
        group = dist.new_group(ranks)
        if dist.get_rank() in ranks:
            total = torch.ones(1)
            dist.all_reduce(total, group=group)
            assert total == len(ranks)
    # In one piece: the ranks share the pipe.
    os.write(1, f"met {dist.get_rank()} {draw.pairs}\\n".encode())
"""


def test_a_hosts_processes_meet_after_ours(
    start: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks compute the mixture, and find it at their next start.

    The host's own process groups then work as if there had been none before.
    """
    script = tmp_path / "as_a_host.py"
    script.write_text(AS_A_HOST)
    # The process group of this process has set it, and a host has not.
    monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS", raising=False)
    for _ in range(2):
        done = start(processes=2, recipe=script)
        met = sorted(line for line in done.stdout.splitlines() if line.startswith("met"))
        assert [line[:5] for line in met] == ["met 0", "met 1"]
        assert met[0][5:] == met[1][5:]


def test_killed_while_embedding(launch: Launch, begin: Begin, tmp_path: Path) -> None:
    """When a rank is killed while embedding, the same command embeds only what is missing.

    The embeddings are those of an uninterrupted run, to the last byte.
    """
    settings = ("chameleon.samples=3000", "train.train_iters=1", "train.eval_iters=0")
    launch(*settings, f"output={tmp_path / 'whole'}", processes=2)
    kept = tmp_path / "out" / "mixture.partial"
    begun = begin(*settings, until=lambda: any(kept.glob("*.safetensors")))
    begun.send(1, signal.SIGKILL)
    assert begun.wait(60) != 0, "it ended before it was killed"
    done = launch(*settings, processes=2)
    assert re.search("[12] of 3 domains had been embedded already", done.stdout)
    whole, resumed = (
        (tmp_path / name / "mixture.safetensors").read_bytes() for name in ("whole", "out")
    )
    assert resumed == whole
    assert not kept.exists()


def test_base_model_in_other_layouts(launch: Launch, tmp_path: Path) -> None:
    """A run that continues in another layout ends at the losses of one process."""
    uniform = "data.mixture=uniform"
    launch(uniform, "checkpoint.save_interval=3")
    folder = tmp_path / "out" / "uniform"
    single = result(folder)
    (folder / "latest_checkpointed_iteration.txt").write_text("3")
    for name, *layout in (
        (
            "sequence",
            "parallel.tensor_model_parallel_size=2",
            "parallel.sequence_parallel=true",
        ),
        ("pipeline", "parallel.pipeline_model_parallel_size=2"),
    ):
        shutil.copytree(folder, tmp_path / name / "uniform")
        done = launch(uniform, f"output={tmp_path / name}", *layout, processes=2)
        assert "resuming from" in done.stdout
        other = result(tmp_path / name / "uniform")
        assert other["loss"] == pytest.approx(single["loss"], abs=1e-5)
        assert other["macro"]["loss"] == pytest.approx(single["macro"]["loss"], abs=1e-5)


def test_a_pretrained_checkpoint_embeds_and_starts_a_run_at_any_layout(
    launch: Launch, tmp_path: Path
) -> None:
    """A learning rate of 0 keeps the losses of the pretrained checkpoint in every layout.

    Such a run can be resumed, and the checkpoint can embed the domains.
    """
    launch("data.mixture=uniform")
    first = result(tmp_path / "out" / "uniform")
    there = str(tmp_path / "out" / "uniform")
    settings = [f"checkpoint.pretrained_checkpoint={there}"]
    settings += ["optimizer.lr=0", "optimizer.min_lr=0"]
    for name, run, *layout in (
        ("TP", "chameleon", f"proxy.load={there}", "parallel.tensor_model_parallel_size=2"),
        ("PP", "uniform", "parallel.pipeline_model_parallel_size=2"),
    ):
        same = (*settings, f"data.mixture={run}", f"output={tmp_path / name}", *layout)
        launch(*same, processes=2)
        if name == "TP":
            assert "resuming from" in launch(*same, processes=2).stdout
        for domain, facts in result(tmp_path / name / run)["domains"].items():
            assert facts["loss"] == pytest.approx(first["domains"][domain]["loss"], abs=1e-5)


def test_killed_run_ends_as_if_never_killed(launch: Launch, begin: Begin, tmp_path: Path) -> None:
    """A run that was killed while training ends at the loss of an uninterrupted run."""
    settings = ("data.mixture=uniform", "train.train_iters=80", "checkpoint.save_interval=20")
    launch(*settings, f"output={tmp_path / 'whole'}", processes=2)
    folder = tmp_path / "out" / "uniform"
    tracker = folder / "latest_checkpointed_iteration.txt"
    begin(*settings, until=tracker.exists).kill()
    assert not (folder / "result.json").exists(), "it ended before it was killed"
    assert "resuming from" in launch(*settings, processes=2).stdout
    whole, resumed = result(tmp_path / "whole" / "uniform"), result(folder)
    assert resumed["loss"] == pytest.approx(whole["loss"], abs=1e-6)
    for name, domain in whole["domains"].items():
        assert resumed["domains"][name]["loss"] == pytest.approx(domain["loss"], abs=1e-6)


def test_a_run_of_several_stops_when_one_is_asked_to(
    launch: Launch, begin: Begin, tmp_path: Path
) -> None:
    """When one of two ranks gets SIGUSR1, both save and end. The same command continues the run."""
    often = ("logging.log_interval=5", "checkpoint.save_interval=20")
    settings = ("data.mixture=uniform", "train.train_iters=100", *often)
    folder = tmp_path / "out" / "uniform"
    tracker = folder / "latest_checkpointed_iteration.txt"
    begun = begin(*settings, until=tracker.exists)
    begun.send(1, signal.SIGUSR1)
    assert begun.wait(timeout=120) != 0
    reached = int(tracker.read_text())
    assert 20 < reached < 100
    assert not (folder / "result.json").exists()
    done = launch(*settings, processes=2)
    assert f"resuming from {folder / f'iter_{reached:07d}'}" in done.stdout
    assert result(folder)["iterations"] == 100


def refused(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """Run the recipe in this process, require exit code 2 and one line on stderr, and return it."""
    monkeypatch.setattr(sys, "argv", [str(RECIPE), *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(RECIPE), run_name="__main__")
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def break_files(corpus: Path, tmp_path: Path, fault: str) -> str:
    """Copy the `code` domain with a fault and return the copy's prefix."""
    prefix = tmp_path / "broken"
    for ending in (".bin", ".idx"):
        data = (corpus / f"code{ending}").read_bytes()
        if fault != f"no {ending}":
            cut = len(data) // 2 if fault == f"short {ending}" else len(data)
            Path(f"{prefix}{ending}").write_bytes(data[:cut])
    if fault == "empty":
        from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

        IndexedDatasetBuilder(f"{prefix}.bin").finalize(f"{prefix}.idx")
    return str(prefix)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("no .bin", "there is no"),
        ("no .idx", "there is no"),
        ("short .idx", "truncated"),
        ("short .bin", "bytes"),
        ("empty", "empty"),
    ],
)
def test_damaged_data_is_refused_before_anything_runs(
    corpus: Path,
    config_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: str,
    says: str,
) -> None:
    """Missing, truncated or empty files end in one line and exit code 2, with nothing written."""
    prefix = break_files(corpus, tmp_path, fault)
    line = refused(
        ["--config", str(config_file), f"data.domains.code.path={prefix}"], monkeypatch, capsys
    )
    assert "data.domains.code.path" in line
    assert says in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.mixtur=uniform", "did you mean data.mixture?"),
        ("data.mixture=unifrom", "did you mean uniform?"),
        ("parallel.tensor_model_parallel_size=3", "is not a multiple of"),
        ("data.tokenizer=nowhere.json", "nowhere.json"),
        ("data.split=100", "validation tokens"),
        ("data.mixture=static", "needs data.domains.code.weight"),
        ("train.precision=bf16", "needs CUDA"),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(
    config_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    override: str,
    says: str,
) -> None:
    """A setting that cannot run ends in one line and exit code 2, with nothing written."""
    if "CUDA" in says:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    line = refused(["--config", str(config_file), override], monkeypatch, capsys)
    assert says in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", ["uniform", "chameleon"])
def test_one_domain_is_refused(
    config_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: str,
) -> None:
    """A configuration with a single domain is refused."""
    config = yaml.safe_load(config_file.read_text())
    del config["data"]["domains"]["code"], config["data"]["domains"]["legal"]
    config_file.write_text(yaml.safe_dump(config))
    line = refused(["--config", str(config_file), f"data.mixture={given}"], monkeypatch, capsys)
    assert "at least two" in line


def test_mixture_for_other_domains_is_refused(
    config_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A mixture of other domains is refused, and the names that do not match are listed."""
    path = tmp_path / "other.json"
    path.write_text('{"format": 1, "weights": {"code": 0.5, "wiki": 0.5}}')
    for override in (f"data.mixture={path}", f"chameleon.file={path}"):
        line = refused(["--config", str(config_file), override], monkeypatch, capsys)
        assert "other.json" in line
        assert "no weight for legal, prose" in line
        assert "weights for wiki" in line
    assert not (tmp_path / "out").exists()


def test_one_process_speaks(config_file: Path) -> None:
    """When two ranks find the same fault, one of them prints it, and the other one is ended."""
    both = ranks.start_script(RECIPE, ["--config", str(config_file), "data.mixtur=uniform"], 2)
    assert both.wait() != 0
    assert both.codes == [2, -signal.SIGTERM]
    assert both.said("stderr").count("error: ") == 1
    assert "error: unknown key data.mixtur;" in both.said("stderr")


@pytest.mark.slow
def test_under_torchrun_one_process_speaks(torchrun: Launch) -> None:
    """Of two ranks with the same fault one prints it, and so does the report of torchrun."""
    done = torchrun("data.mixtur=uniform", processes=2, check=False)
    assert done.returncode != 0
    fault = "error: unknown key data.mixtur; did you mean data.mixture?"
    assert [line for line in done.stderr.splitlines() if line.startswith("error:")] == [fault]
    assert f"traceback : {fault}" in done.stderr
    assert done.stderr.count(fault) == 2
    assert "exitcode  : 2" in done.stderr
