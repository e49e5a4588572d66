"""tests/kill: a program dies where it is told to, and other ends are told from equal ones."""

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import run as harness
import torch
from jobs import POINTS, Job, differences, ending, stage_of
from torch.distributed.checkpoint.state_dict_saver import save

# What it writes in one step, it writes again; what it adds to a file is there twice if it is killed
# between the two steps.
PROGRAM = """
import json, os, pathlib, sys
out, careful = pathlib.Path(sys.argv[1]), sys.argv[2] == "careful"
(out / "chameleon").mkdir(parents=True, exist_ok=True)
(out / "proxy").mkdir(exist_ok=True)
print("at work", flush=True)
lines = out / "lines"
if careful or not lines.exists():
    lines.write_text("")
with lines.open("a") as stream:
    stream.write("x")
names = ["mixture.json", "proxy/result.json", "chameleon/mixture.json", "chameleon/result.json"]
for name in names:
    (out / "aside").write_text(json.dumps({"length": lines.stat().st_size, "seconds": os.getpid()}))
    os.replace(out / "aside", out / name)
"""


@dataclass(frozen=True)
class Program(Job):
    """A small program in place of a recipe."""

    def command(self, output: Path) -> list[str]:
        """Return the command that starts it."""
        return [sys.executable, "-c", PROGRAM, str(output), self.recipe]


@pytest.mark.parametrize("kind", ["careful", "careless"])
def test_every_change_is_a_point(tmp_path: Path, kind: str) -> None:
    """A program that repeats its steps ends as undisturbed; one that adds to a file does not."""
    run = harness.Harness(Program("program", kind, tmp_path), tmp_path / "kills")
    assert [change.split()[0] for change in run.changes].count("os.rename") == 4
    for at in range(1, len(run.changes) + 1):
        run.at_change(at)
    table = run.table("deaths").splitlines()[-1].split()
    kept = sorted(path.name for path in run.folder.iterdir() if path.is_dir())[:-1]
    assert int(table[1]) == int(table[2]) >= len(run.changes) - 1
    assert (int(table[4]) > 0) == bool(kept) == (kind == "careless")


def test_random_kills(tmp_path: Path) -> None:
    """A job is killed no more often than asked, and then ends."""
    run = harness.Harness(Program("program", "careful", tmp_path), tmp_path / "kills")
    run.seconds = 0.0
    kills = sum(run.at_random(2, random.Random(seed)) for seed in range(4))
    assert run.table("kills").splitlines()[-1].split() == ["all", *[str(kills)] * 3, "0"]
    assert 0 < kills <= 8


def test_all_processes_die_at_the_point(tmp_path: Path) -> None:
    """The changes of all processes count together, and the whole group dies."""
    program = (
        "import os, pathlib, sys\n"
        "os.fork()\n"
        "for i in range(9): (pathlib.Path(sys.argv[1]) / f'{os.getpid()}-{i}').touch()\n"
        "import time; time.sleep(60)\n"
    )
    out = tmp_path / "out"
    out.mkdir()
    watch = {"KILL_FOLDER": str(out), "KILL_COUNT": str(tmp_path / "count"), "KILL_AT": "12"}
    command = [sys.executable, "-c", program, str(out)]
    environment = {**os.environ, **watch, "PYTHONPATH": str(POINTS)}
    died = subprocess.run(command, env=environment, start_new_session=True, timeout=50)
    assert died.returncode == -signal.SIGKILL
    assert len(list(out.iterdir())) <= 12


def test_differences_are_named() -> None:
    """A figure, a missing key and another type are differences; rounding errors are none."""
    one = json.loads('{"a": {"b": [1, 0.5]}, "c": 1}')
    assert differences(one, json.loads('{"a": {"b": [1, 0.50000000001]}, "c": 1}')) == []
    for other, where in (
        ('{"a": {"b": [1, 0.5001]}, "c": 1}', "/a/b/1: 0.5 is 0.5001"),
        ('{"a": {"b": [2, 0.5]}, "c": 1}', "/a/b/0: 1 is 2"),
        ('{"a": {"b": [1, 0.5]}}', "/c"),
        ('{"a": {"b": [1]}, "c": 1}', "/a/b: "),
    ):
        found = differences(one, json.loads(other))
        assert len(found) == 1
        assert found[0].startswith(where)


def test_weights_count(tmp_path: Path) -> None:
    """Two jobs of which only the weights of the base model differ, or are lost, end differently."""
    folders = [tmp_path / name for name in ("one", "same", "other")]
    for folder, value in zip(folders, (1.0, 1.0, 2.0), strict=True):
        for name in ("mixture", "base/mixture", "base/result", "proxy/result"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.json").write_text("{}")
        for run, weight in (("base", value), ("proxy", 0.0)):
            state = {"decoder.x": torch.full((9,), weight), "optimizer.x": torch.rand(9)}
            save(state, checkpoint_id=folder / run / "iter_0000006", no_dist=True)
            (folder / run / "latest_checkpointed_iteration.txt").write_text("6")
    one, same, other = (ending(folder, "base") for folder in folders)
    assert differences(one, same) == []
    (found,) = differences(one, other)
    assert found.startswith("/base/weights/digest: ")
    (folders[1] / "base" / "latest_checkpointed_iteration.txt").unlink()
    assert len(differences(one, ending(folders[1], "base"))) == 1


def test_what_an_earlier_kill_left_is_no_stage(tmp_path: Path) -> None:
    """A job is killed while it saves only if this start has begun to save."""
    left = tmp_path / "base" / "iter_0000002.tmp"
    left.mkdir(parents=True)
    began = left.stat().st_mtime
    assert stage_of(tmp_path, "base", began) == "checkpointing"
    assert stage_of(tmp_path, "base", began + 1) == "training"
