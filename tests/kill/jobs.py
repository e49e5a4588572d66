"""The jobs that are killed, how far one has come, and what its end is compared by."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).parents[2]
POINTS = Path(__file__).parent / "points"
PATIENCE = 600.0
"""Seconds that one start may take."""
STAGES = ("start", "index building", "proxy", "embedding", "training", "checkpointing", "end")
# What tells two equal runs apart.
_OTHERWISE = ("created", "seconds")


@dataclass(frozen=True)
class Job:
    """A job, as a user starts it.

    Attributes:
        name: of the job.
        recipe: the name of the recipe.
        config: its configuration.
        run: the name of the base model's run.
        processes: number of processes; more than one run under torchrun.
        overrides: further settings.
    """

    name: str
    recipe: str
    config: Path
    run: str = "chameleon"
    processes: int = 1
    overrides: tuple[str, ...] = ()

    def command(self, output: Path) -> list[str]:
        """Return the command that starts the job, with its files in a folder."""
        start = [sys.executable]
        if self.processes > 1:
            start += ["-m", "torch.distributed.run", "--standalone"]
            start += [f"--nproc_per_node={self.processes}"]
        recipe = str(ROOT / "recipes" / f"{self.recipe}.py")
        return [*start, recipe, "--config", str(self.config), f"output={output}", *self.overrides]

    def begin(
        self, output: Path, log: Path, environment: Mapping[str, str] = os.environ
    ) -> "subprocess.Popen[bytes]":
        """Start the job in a process group of its own."""
        paths = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
        settings = {**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
        with log.open("ab") as stream:
            return subprocess.Popen(
                self.command(output),
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=settings,
                start_new_session=True,
            )


def kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill a job with all its processes."""
    members: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        # The ranks of a torchrun have process groups of their own.
        members = psutil.Process(process.pid).children(recursive=True)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for member in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    psutil.wait_procs(members, timeout=60)


def stage_of(output: Path, run: str, since: float = 0.0) -> str:
    """Say how far a job that began at a time has come, by the files that it has left."""
    done = (output / run / "result.json").is_file()
    # What was left by an earlier kill says nothing about this one.
    if any(path.stat().st_mtime >= since for path in output.glob("*/iter_*.tmp")):
        return "checkpointing"
    if done:
        return "end"
    if (output / run).is_dir():
        return "training"
    if (output / "proxy" / "result.json").is_file():
        return "embedding"
    if any(output.glob("proxy/iter_*")):
        return "proxy"
    return "index building" if (output / "cache").is_dir() else "start"


def ending(output: Path, run: str) -> dict[str, Any]:
    """Return what a finished job has to show: its mixture, its results and its weights."""
    from nemo_chameleon.models.content import weights_digest
    from nemo_chameleon.models.tracker import tracked

    files = ["mixture.json", f"{run}/mixture.json", f"{run}/result.json", "proxy/result.json"]
    found = {}
    for name in files:
        text = (output / name).read_text().replace(str(output), "OUTPUT")
        found[name] = {k: v for k, v in json.loads(text).items() if k not in _OTHERWISE}
    for name in ("proxy", run):
        path = tracked(output / name)[1]
        found[f"{name}/weights"] = {"digest": path and weights_digest(path)}
    return found


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Return where two endings differ; floats are equal within a relative 1e-6."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted({*one, *other})
        missing: list[str] = [f"{where}/{key}" for key in keys if (key in one) != (key in other)]
        both = [key for key in keys if key in one and key in other]
        return missing + [
            d for key in both for d in differences(one[key], other[key], f"{where}/{key}")
        ]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{where}/{i}")]
    if isinstance(one, float) and isinstance(other, float):
        same = math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)
    else:
        same = type(one) is type(other) and one == other
    return [] if same else [f"{where}: {one!r:.60} is {other!r:.60}"]


def wait(
    process: "subprocess.Popen[bytes]", until: Callable[[], bool] = lambda: False
) -> int | None:
    """Wait for a job's end, or until something is true; return its exit status if it ended.

    Raises:
        TimeoutError: neither happens; the job is killed.
    """
    deadline = time.monotonic() + PATIENCE
    while (status := process.poll()) is None and not until():
        if time.monotonic() > deadline:
            kill(process)
            raise TimeoutError(f"{process.args!r} does not end")
        time.sleep(0.01)
    return status


def make_jobs(folder: Path) -> list[Job]:
    """Write data and configurations, and train the model that one of the jobs finetunes.

    Args:
        folder: where they are written, if they are not there.

    Returns:
        The jobs.
    """
    from nemo_chameleon.data.tokenize import write_dataset
    from nemo_chameleon.data.tokenizer import train_tokenizer
    from project import texts_of_corpus, write_config
    from sft_data import write_sft_config

    corpus, pretraining, finetuning = (folder / name for name in ("corpus", "gpt", "sft"))
    if not (corpus / "tokenizer.json").is_file():
        for each in (corpus, pretraining, finetuning):
            each.mkdir(parents=True, exist_ok=True)
        texts = texts_of_corpus()
        tokenizer = train_tokenizer((text for part in texts.values() for text in part), 512)
        for name, documents in texts.items():
            write_dataset(documents, tokenizer, corpus / name)
        tokenizer.save(str(corpus / "tokenizer.json"))
    configs = {
        "gpt": write_config(corpus, pretraining),
        "sft": write_sft_config(corpus, finetuning),
    }
    for path in configs.values():
        config = yaml.safe_load(path.read_text())
        config["checkpoint"] = {"save_interval": 2, "keep": 2}
        if path == configs["sft"]:
            config["data"]["on_too_long"] = "truncate"
            config["checkpoint"]["pretrained_checkpoint"] = str(folder / "base" / "uniform")
        path.write_text(yaml.safe_dump(config, sort_keys=False))
    # The samples of finetuning are twice as long as those of pretraining.
    base = Job("base", "pretrain_chameleon", configs["gpt"], "uniform", 1)
    if not (folder / "base" / "uniform" / "result.json").is_file():
        settings = ("data.mixture=uniform", "model.seq_length=64")
        made = Job(base.name, base.recipe, base.config, base.run, 1, settings)
        if wait(made.begin(folder / "base", folder / "base.log")) != 0:
            raise RuntimeError(f"the model to finetune cannot be trained, see {folder}/base.log")
    stages = "data.stages=[{until: 0.5}, {until: 0.7, mixture: uniform}, {floor: {code: 0.5}}]"
    tensor = ("proxy.parallel.tensor_model_parallel_size=2", "data.num_workers=1", stages)
    return [
        Job("pretraining", "pretrain_chameleon", configs["gpt"]),
        Job("finetuning", "sft_chameleon", configs["sft"], overrides=("data.mixture=chameleon",)),
        Job("torchrun", "pretrain_chameleon", configs["gpt"], "plan", 2, tensor),
    ]
