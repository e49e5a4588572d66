"""NeMo-Run's experiment on the same SLURM. Its own environment submits: make test-slurm."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from cluster import Cluster, missing
from project import ROOT

# That of NeMo, which brings NeMo-Run; the jobs themselves run in the tests' own.
PYTHON = ROOT / ".venv-nemo" / "bin" / "python"
if missing() or not PYTHON.exists():
    pytest.skip("make test-slurm installs SLURM and .venv-nemo", allow_module_level=True)

SUBMIT = """\
import json, sys
import nemo_run
from nemo_chameleon.launch.nemo_run import chain

config, folder, action = sys.argv[1:]
executor = nemo_run.SlurmExecutor(
    account="mine",
    partition="all",
    nodes=2,
    gpus_per_node=1,
    tunnel=nemo_run.LocalTunnel(job_dir=f"{folder}/experiments"),
    packager=nemo_run.Packager(),
)
settings = ["proxy.train.train_iters=200", "logging.log_interval=5"]
with chain(executor, config, settings, checkout=%r) as experiment:
    if action == "print":
        experiment.dryrun()
    else:
        experiment.run(detach=True)
        print("jobs", json.dumps([job.handle for job in experiment.jobs]))
"""


def submitted(slurm: Cluster, config: Path, action: str) -> str:
    """Return what the script prints that makes the experiment."""
    folder = config.parent / "runs"
    script = config.parent / "submit.py"
    script.write_text(SUBMIT % str(ROOT))
    env = {**slurm.env, "NEMORUN_HOME": str(folder), "COLUMNS": "200", "PYTHONPATH": str(ROOT)}
    command = [str(PYTHON), str(script), str(config), str(folder), action]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_experiment_is_printed(slurm: Cluster, config_file: Path) -> None:
    """The experiment has three scripts, the first two for one node, with one torchrun per node."""
    scripts = submitted(slurm, config_file, "print")
    assert re.findall(r"#SBATCH --nodes=(\d+)", scripts) == ["1", "1", "2"]
    assert scripts.count("#SBATCH --signal=USR1@300") == 3
    assert scripts.count("#SBATCH --ntasks-per-node=1") == 3
    assert not (config_file.parent / "out").exists()


def test_the_experiment_runs(slurm: Cluster, config_file: Path) -> None:
    """The three jobs run one after the other; the first one is preempted and continues."""
    printed = submitted(slurm, config_file, "run")
    handles = json.loads(next(line for line in printed.splitlines() if line.startswith("jobs"))[4:])
    jobs = [handle.split("/")[3] for handle in handles]
    out = config_file.parent / "out"
    slurm.until((out / "proxy" / "mixture.json").exists, 300, jobs[0])
    slurm.run("scancel", "--signal=USR1", jobs[0])
    facts = [slurm.ended(job) for job in jobs]
    logs = "".join(path.read_text() for path in config_file.parent.glob("runs/**/*.out"))
    assert [fact["JobState"] for fact in facts] == ["COMPLETED"] * 3, logs
    assert [fact["Restarts"] for fact in facts] == ["1", "0", "0"]
    assert "proxy: resuming from" in logs
    assert json.loads((out / "chameleon" / "result.json").read_text())["iterations"] == 6
