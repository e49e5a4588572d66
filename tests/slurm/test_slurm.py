"""The .sbatch scripts on a real SLURM of two nodes: make test-slurm."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster import Cluster, cluster, missing
from conftest import ROOT, write_config

if missing():
    pytest.skip(f"make test-slurm installs {', '.join(missing())}", allow_module_level=True)

SCRIPTS = ROOT / "recipes" / "slurm"
UNIFORM = ("data.mixture=uniform", "checkpoint.save_interval=40", "logging.log_interval=5")
LONG = (*UNIFORM, "train.train_iters=160")


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster whose jobs start one process a node, in this environment."""
    env = {**os.environ, "NPROC": "1", "OMP_NUM_THREADS": "1", "GRACE": "60"}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    with cluster(tmp_path_factory.mktemp("cluster"), ROOT, env) as running:
        yield running


def submit(slurm: Cluster, config: Path, *settings: str) -> str:
    """The pretraining job as it stands, on as many GPUs as this machine claims to have."""
    log = config.parent / "job-%j.log"
    script = str(SCRIPTS / "pretrain_chameleon.sbatch")
    return slurm.submit("--gpus-per-node=1", f"--output={log}", script, str(config), *settings)


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def said(config: Path, job: str) -> str:
    return (config.parent / f"job-{job}.log").read_text()


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.*")), ids=lambda path: path.name)
def test_scripts_are_sound(script: Path) -> None:
    """A shell check finds nothing."""
    check = ["shellcheck", "--external-sources", str(script)]
    done = subprocess.run(check, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="session")
def undisturbed(slurm: Cluster, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    """The loss that a job on two nodes ends with when nothing happens to it."""
    config = write_config(corpus, tmp_path_factory.mktemp("undisturbed"))
    facts = slurm.ended(job := submit(slurm, config, *LONG))
    assert facts["JobState"] == "COMPLETED", said(config, job)
    assert facts["NumNodes"] == "2"
    return result(config.parent / "out" / "uniform")["loss"]


def test_proxy_mixture_and_base_in_one_job(slurm: Cluster, config_file: Path) -> None:
    """The proxy with its own layout, then the base model with another, on two nodes."""
    tensor = "proxy.parallel.tensor_model_parallel_size=2"
    facts = slurm.ended(job := submit(slurm, config_file, tensor))
    assert facts["JobState"] == "COMPLETED", said(config_file, job)
    out = config_file.parent / "out"
    assert (out / "mixture.json").is_file()
    assert result(out / "chameleon")["iterations"] == 6


@pytest.mark.parametrize("to", ["--batch", "steps"])
def test_a_job_out_of_time_goes_on(
    slurm: Cluster, config_file: Path, undisturbed: float, to: str
) -> None:
    """The signal, to the script as SLURM sends it or to the processes: saved and queued again."""
    job = submit(slurm, config_file, *LONG)
    folder = config_file.parent / "out" / "uniform"
    tracker = folder / "latest_checkpointed_iteration.txt"
    slurm.until(tracker.exists, 120, job)
    slurm.run("scancel", "--signal=USR1", *([to] if to == "--batch" else []), job)
    facts = slurm.ended(job)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), said(config_file, job)
    assert "out of time: back into the queue" in said(config_file, job)
    assert result(folder)["loss"] == pytest.approx(undisturbed, abs=1e-6)


def test_a_rank_that_dies_takes_the_job_with_it(
    slurm: Cluster, config_file: Path, undisturbed: float
) -> None:
    """Within a minute, and submitted again it ends as if nothing had happened."""
    job = submit(slurm, config_file, *LONG)
    folder = config_file.parent / "out" / "uniform"
    slurm.until((folder / "latest_checkpointed_iteration.txt").exists, 120, job)
    ranks = [
        process
        for process in psutil.process_iter(["cmdline", "environ"])
        if (process.info["environ"] or {}).get("SLURM_JOB_ID") == job
        and (process.info["environ"] or {}).get("RANK") == "1"
    ]
    min(ranks, key=lambda process: process.create_time()).kill()
    killed = time.monotonic()
    assert slurm.ended(job, within=60)["JobState"] == "FAILED"
    assert time.monotonic() - killed < 60
    assert "Signal 9" in said(config_file, job)
    again = submit(slurm, config_file, *LONG)
    assert slurm.ended(again)["JobState"] == "COMPLETED", said(config_file, again)
    assert result(folder)["loss"] == pytest.approx(undisturbed, abs=1e-6)
