"""The .sbatch scripts on a real SLURM with jobs of two nodes: make test-slurm."""

import contextlib
import json
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from cluster import NODES, Cluster, missing
from nemo_chameleon.data import cached
from project import ROOT, write_config

if missing():
    pytest.skip(f"make test-slurm installs {', '.join(missing())}", allow_module_level=True)

SCRIPTS = ROOT / "recipes" / "slurm"
PACE = ("checkpoint.save_interval=40", "logging.log_interval=5")
UNIFORM = ("data.mixture=uniform", *PACE)
LONG = ("train.train_iters=160", *UNIFORM)


def submit(slurm: Cluster, config: Path, *settings: str) -> str:
    """Submit the pretraining job as it is, for nodes that claim one GPU each."""
    log = config.parent / "job-%j.log"
    script = str(SCRIPTS / "pretrain_chameleon.sbatch")
    return slurm.submit("--gpus-per-node=1", f"--output={log}", script, str(config), *settings)


def result(folder: Path) -> dict[str, Any]:
    """Return the result of a run."""
    facts: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return facts


def said(config: Path, job: str) -> str:
    return (config.parent / f"job-{job}.log").read_text()


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.s*")), ids=lambda path: path.name)
def test_scripts_are_sound(script: Path) -> None:
    """A shell check of the script finds nothing."""
    check = ["shellcheck", "--external-sources", str(script)]
    done = subprocess.run(check, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def undisturbed(
    slurm: Cluster, corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], float]:
    """Submit a job on two nodes that nothing happens to; the function waits for its last loss.

    All tests share this job, also those in other processes.
    """

    def submit_once() -> list[str]:
        config = write_config(corpus, tmp_path_factory.mktemp("undisturbed"))
        return [str(config), submit(slurm, config, *LONG)]

    name, job = slurm.once("undisturbed", submit_once)
    config = Path(name)

    def loss() -> float:
        facts = slurm.ended(job)
        assert facts["JobState"] == "COMPLETED", said(config, job)
        assert facts["NumNodes"] == "2"
        return float(result(config.parent / "out" / "uniform")["loss"])

    return loss


def test_proxy_mixture_and_base_in_one_job(slurm: Cluster, config_file: Path) -> None:
    """One job on two nodes trains the proxy and the base model, each in a layout of its own."""
    tensor = "proxy.parallel.tensor_model_parallel_size=2"
    facts = slurm.ended(job := submit(slurm, config_file, tensor))
    assert facts["JobState"] == "COMPLETED", said(config_file, job)
    out = config_file.parent / "out"
    assert (out / "mixture.json").is_file()
    assert result(out / "chameleon")["iterations"] == 6


@pytest.mark.parametrize("to", ["--batch", "steps"])
def test_a_job_out_of_time_goes_on(
    slurm: Cluster, config_file: Path, undisturbed: Callable[[], float], to: str
) -> None:
    """A job that is signalled saves, is queued again and continues.

    The signal may go to the script, as SLURM sends it, or to the processes.
    """
    job = submit(slurm, config_file, *LONG)
    folder = config_file.parent / "out" / "uniform"
    tracker = folder / "latest_checkpointed_iteration.txt"
    slurm.until(tracker.exists, 300, job)
    slurm.run("scancel", "--signal=USR1", *([to] if to == "--batch" else []), job)
    facts = slurm.ended(job)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), said(config_file, job)
    assert "out of time: back into the queue" in said(config_file, job)
    assert result(folder)["loss"] == pytest.approx(undisturbed(), abs=1e-6)


def test_a_rank_that_dies_takes_the_job_with_it(
    slurm: Cluster, config_file: Path, undisturbed: Callable[[], float]
) -> None:
    """When a rank dies, the job fails within a minute.

    When it is submitted again, it ends at the loss of an undisturbed job.
    """
    job = submit(slurm, config_file, *LONG)
    folder = config_file.parent / "out" / "uniform"
    slurm.until((folder / "latest_checkpointed_iteration.txt").exists, 300, job)
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
    log = said(config_file, job)
    assert "Signal 9" in log
    assert "gloo" not in log, "the other rank waits for the one that died to be named"
    again = submit(slurm, config_file, *LONG)
    assert slurm.ended(again)["JobState"] == "COMPLETED", said(config_file, again)
    assert result(folder)["loss"] == pytest.approx(undisturbed(), abs=1e-6)


def test_two_jobs_and_one_run(
    slurm: Cluster, config_file: Path, undisturbed: Callable[[], float]
) -> None:
    """A second job on other nodes is refused, with the node and the job that have the run's folder.

    After the first one was killed, the third one takes over within a minute, and continues.
    """
    settings = ("train.train_iters=160", *UNIFORM)
    first = submit(slurm, config_file, *settings, "checkpoint.save_interval=10")
    folder = config_file.parent / "out" / "uniform"
    slurm.until((folder / "latest_checkpointed_iteration.txt").exists, 300, first)
    owner = json.loads((folder / "run.lease").read_text())
    assert (owner["host"] in NODES, owner["job"]) == (True, first)
    others = f"--exclude={slurm.facts(first)['NodeList']}"
    log = f"--output={config_file.parent}/job-%j.log"
    script = str(SCRIPTS / "pretrain_chameleon.sbatch")

    def again() -> str:
        command = ("--gpus-per-node=1", others, log, script, str(config_file), *settings)
        return slurm.submit(*command)

    ranks = [
        process
        for process in psutil.process_iter(["environ"])
        if (process.info["environ"] or {}).get("SLURM_JOB_ID") == first
    ]
    for process in ranks:  # it renews its lease, and does not finish
        if (process.info["environ"] or {}).get("RANK") == "1":
            process.suspend()
    second = again()
    assert slurm.ended(second)["JobState"] == "FAILED"
    said_by_second = said(config_file, second)
    wanted = f"error: {folder} is in use by process {owner['process']} on {owner['host']}, SLURM"
    assert wanted in said_by_second, said_by_second
    assert "UserError" not in said_by_second  # torchrun has a traceback of its own

    for process in ranks:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    slurm.ended(first)
    assert (folder / "run.lease").exists()
    third = again()
    assert slurm.ended(third)["JobState"] == "COMPLETED", said(config_file, third)
    assert "waiting up to 60 s" in said(config_file, third)
    assert "resuming from" in said(config_file, third)
    assert not (folder / "run.lease").exists()
    assert result(folder)["loss"] == pytest.approx(undisturbed(), abs=1e-6)


def launched(slurm: Cluster, recipe: Path, *arguments: str) -> str:
    """Submit a job of two nodes for a recipe of a test's own."""
    command = shlex.join([str(recipe), *arguments])
    return slurm.submit(
        "--nodes=2",
        "--ntasks-per-node=1",
        "--gpus-per-node=1",
        f"--output={recipe.parent}/job-%j.log",
        f"--wrap=exec bash -c 'source recipes/slurm/launch.sh; launch {command}'",
    )


def test_work_that_does_not_listen_is_ended(slurm: Cluster, config_file: Path) -> None:
    """Work that ignores the signal is ended after GRACE seconds, and the job starts again."""
    recipe, begun = config_file.parent / "busy.py", config_file.parent / "begun"
    seconds = 300
    recipe.write_text(
        f"import pathlib, time\nbegun = pathlib.Path({str(begun)!r})\n"
        f"time.sleep(0 if begun.exists() else (begun.touch(), {seconds})[1])\n"
    )
    job = launched(slurm.given(GRACE="3"), recipe)
    slurm.until(begun.exists, 60, job)
    time.sleep(2)  # both of them
    slurm.run("scancel", "--signal=USR1", "--batch", job)
    facts = slurm.ended(job, within=120)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), said(config_file, job)


DYING = """\
import sys
sys.path.insert(0, {recipes!r})
import torch.distributed as dist
from pretrain_chameleon import main
from nemo_chameleon.train import trainer

step = trainer.Trainer.step

def dies(self, batches):
    if self.iteration == 8 and dist.get_rank() == 1:
        raise RuntimeError("the dog ate it")
    return step(self, batches)

trainer.Trainer.step = dies
if __name__ == "__main__":
    main()
"""


def test_a_rank_that_fails_says_so_first(slurm: Cluster, config_file: Path) -> None:
    """When a rank fails, the job fails within a minute, and its log has that rank's error first."""
    recipe = config_file.parent / "dying.py"
    recipe.write_text(DYING.format(recipes=str(ROOT / "recipes")))
    job = launched(slurm, recipe, "--config", str(config_file), *LONG)
    slurm.until((config_file.parent / "out" / "uniform" / "mixture.json").exists, 300, job)
    assert slurm.ended(job, within=60)["JobState"] == "FAILED"
    log = said(config_file, job)
    first = log.index("Traceback")
    assert "RuntimeError: the dog ate it" in log[first:].split("Traceback")[1], log
    assert "gloo" not in log, log


def test_the_chain(slurm: Cluster, config_file: Path) -> None:
    """The chain submits three jobs that run one after the other, from a copy of its script too.

    The first one is preempted, and the others still wait for it.
    """
    settings = ("proxy.train.train_iters=200", "logging.log_interval=5")
    log = f"{config_file.parent}/job-%j.log"
    two_nodes = slurm.given(NODES="2", GPUS="1", SBATCH_OUTPUT=log)
    script = config_file.parent / "mine.sh"
    text = (SCRIPTS / "chain.sh").read_text()
    script.write_text(text.replace("#SBATCH --requeue", "#SBATCH --requeue --comment=mine"))
    script.chmod(0o755)
    printed = two_nodes.run(str(script), str(config_file), *settings)
    said_of_check, said_of_cost, *of_jobs = printed.splitlines()
    assert "valid for 2 processes" in said_of_check
    assert "a proxy that is trained first embeds the domains" in said_of_cost
    names, jobs = zip(*(line.split(": job ") for line in of_jobs), strict=True)
    assert names == ("train_proxy", "compute_mixture", "pretrain_chameleon")
    out = config_file.parent / "out"
    slurm.until((out / "proxy" / "mixture.json").exists, 300, jobs[0])
    slurm.run("scancel", "--signal=USR1", "--batch", jobs[0])
    facts = [slurm.ended(job) for job in jobs]
    logs = "".join(said(config_file, job) for job in jobs)
    assert [fact["JobState"] for fact in facts] == ["COMPLETED"] * 3, logs
    assert [fact["NumNodes"] for fact in facts] == ["1", "1", "2"]
    assert [fact["Comment"] for fact in facts] == ["mine"] * 3
    assert [fact["Restarts"] for fact in facts] == ["1", "0", "0"]
    ends = [fact["EndTime"] for fact in facts]
    assert ends == sorted(ends)
    assert "proxy: resuming from" in said(config_file, jobs[0])
    assert "weights written to" in said(config_file, jobs[1])
    assert "weights from" in said(config_file, jobs[2])
    assert result(out / "chameleon")["iterations"] == 6


def test_the_chain_ends_where_it_cannot_run(slurm: Cluster, config_file: Path) -> None:
    """No job is submitted for a base model whose layout does not fit its nodes."""
    wrong = "parallel.tensor_model_parallel_size=4"
    command = [str(SCRIPTS / "chain.sh"), str(config_file), wrong]
    env = slurm.given(NODES="1", GPUS="2").env
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert "tensor_model_parallel_size" in done.stderr
    assert "job" not in done.stdout


CONTAINERS = """\
#!/bin/bash
arguments=()
for argument; do
    case $argument in
        --container-*) echo "$argument" >> {seen} ;;
        *) arguments+=("$argument") ;;
    esac
done
exec {srun} "${{arguments[@]}}"
"""


def test_many_mixtures_in_containers(slurm: Cluster, config_file: Path) -> None:
    """An array runs one mixture per task, each in the image; a stand-in replaces pyxis.

    A task that is out of time is queued again alone, even the one with the array's own number.
    """
    folder = config_file.parent
    (folder / "bin").mkdir()
    srun = folder / "bin" / "srun"
    seen = folder / "containers"
    srun.write_text(CONTAINERS.format(seen=seen, srun=shutil.which("srun")))
    srun.chmod(0o755)
    contained = slurm.given(
        PATH=f"{folder}/bin:{slurm.env['PATH']}",
        CONTAINER_IMAGE="nemo.sqsh",
        CONTAINER_MOUNTS="/data,/home",
    )
    job = contained.submit(
        *("--array=1-2", "--nodes=1", "--gpus-per-node=1", f"--output={folder}/job-%a.log"),
        *(str(SCRIPTS / "array.sbatch"), str(config_file), "train.train_iters=160", *PACE),
    )
    tracker = folder / "out" / "proportional" / "latest_checkpointed_iteration.txt"
    slurm.until(tracker.exists, 300, f"{job}_2")
    assert slurm.facts(f"{job}_2")["JobId"] == job
    slurm.run("scancel", "--signal=USR1", "--batch", f"{job}_2")
    for number, name in (("1", "uniform"), ("2", "proportional")):
        facts = slurm.ended(f"{job}_{number}")
        assert facts["JobState"] == "COMPLETED", said(config_file, number)
        assert facts["Restarts"] == ("1" if name == "proportional" else "0")
        assert result(folder / "out" / name)["iterations"] == 160
    assert set(seen.read_text().split()) == {
        "--container-image=nemo.sqsh",
        "--container-mounts=/data,/home",
        f"--container-workdir={ROOT}",
    }


def test_a_comparison_over_two_nodes(slurm: Cluster, config_file: Path) -> None:
    """Two nodes train the runs of a comparison side by side; the job ends with its report."""
    log = f"--output={config_file.parent}/job-%j.log"
    script = str(SCRIPTS / "compare_mixtures.sbatch")
    settings = ("compare.mixtures=[uniform,proportional]", "compare.seeds=[1,2]")
    job = slurm.submit("--gpus-per-node=1", log, script, str(config_file), *settings)
    assert slurm.ended(job)["JobState"] == "COMPLETED", said(config_file, job)
    folder = config_file.parent / "out" / "compare"
    assert len(list(folder.glob("*/seed*/result.json"))) == 4
    assert "proportional against uniform, mean over the domains: " in said(config_file, job)
    # The nodes share a cache. What both built at once is there once, and nothing is left beside it.
    folders = sorted((config_file.parent / "out" / "cache" / "indices").iterdir())
    assert folders
    assert all(cached.fault_of(folder) is None for folder in folders)


def test_output_on_local_disks_is_refused(slurm: Cluster, config_file: Path) -> None:
    """An output on local disks is refused before training, in a line that says what to set."""
    local = slurm.local / config_file.parent.name
    # Both jobs wait for minutes in case the folder only shows late.
    output = submit(slurm, config_file, f"output={local}")
    cache = submit(slurm, config_file, f"data.cache={local}")
    assert slurm.ended(output)["JobState"] == "FAILED"
    wanted = rf"error: output={local} on n\d+ is a different folder from that on the first rank's"
    assert re.match(wanted, said(config_file, output)), said(config_file, output)
    assert slurm.ended(cache)["JobState"] == "FAILED"
    assert f"error: data.cache={local} on n" in said(config_file, cache)


def test_data_on_local_disks(slurm: Cluster, config_file: Path) -> None:
    """Data on local disks is drawn from where all nodes have the same.

    A node with other data is named.
    """
    settings = yaml.safe_load(config_file.read_text())["data"]["domains"]
    domain, path = next((name, facts["path"]) for name, facts in settings.items())
    local = slurm.local / config_file.parent.name
    for number, node in enumerate(NODES):
        for folder in ("same", "other"):
            slurm.on(node, "mkdir", "-p", f"{local}/{folder}")
            for end in (".bin", ".idx"):
                slurm.on(node, "cp", path + end, f"{local}/{folder}/{domain}{end}")
        # The first token is the node's number, so no two nodes have the same data.
        token = rf"printf '\{number:o}\0'"
        write = f"{token} | dd of={local}/other/{domain}.bin conv=notrunc status=none"
        slurm.on(node, "sh", "-c", write)
    same, other = (
        submit(
            slurm,
            config_file,
            *UNIFORM,
            f"data.domains.{domain}.path={local}/{folder}/{domain}",
            f"output={config_file.parent}/{folder}",
        )
        for folder in ("same", "other")
    )
    assert slurm.ended(same)["JobState"] == "COMPLETED", said(config_file, same)
    assert slurm.ended(other)["JobState"] == "FAILED"
    wanted = rf"error: domain {domain!r} has other data on n\d+ than on the first rank's node: "
    assert re.match(wanted, said(config_file, other)), said(config_file, other)
