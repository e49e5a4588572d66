"""ranks.py: forked ranks start and end as they do under torchrun."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

import ranks
from project import Launch
from ranks import RankError, on_ranks


def what_is_random() -> tuple[int, int]:
    """Return the hash of a string, and a number from numpy's own generator."""
    return hash("domain"), np.random.randint(2**31)


def add_ranks(value: int) -> float:
    """Return the sum of all ranks and of `value` on each, by a process group of torch."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.tensor(float(os.environ["RANK"])) + value
    dist.all_reduce(total)
    dist.destroy_process_group()
    return total.item()


def fail_on_second(ready: Path) -> None:
    """Raise an error on the second rank; on the first, ignore SIGTERM and wait for ever."""
    if os.environ["RANK"] == "1":
        while not ready.exists():
            time.sleep(0.01)
        raise KeyError("the culprit")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready.touch()
    time.sleep(600)


def leave_a_helper() -> int:
    """Return the id of a process that outlives the one that started it."""
    return subprocess.Popen(["sleep", "600"]).pid


def test_a_function_runs_on_every_rank() -> None:
    """The ranks meet in a process group, and their return values come back in their order."""
    assert on_ranks(2, add_ranks, 10) == [21.0, 21.0]
    assert on_ranks(2, os.getenv, "RANK") == ["0", "1"]
    assert on_ranks(2, os.getenv, "LOCAL_WORLD_SIZE") == ["2", "2"]


def test_ranks_and_runs_have_hashes_of_their_own() -> None:
    """Neighbouring ranks hash strings differently, and so does one rank in two runs."""
    one, two = on_ranks(2, what_is_random), on_ranks(2, what_is_random)
    for drawn in (one, two, [one[0], two[0]]):
        assert drawn[0][0] != drawn[1][0]
        assert drawn[0][1] != drawn[1][1]


def test_a_rank_that_fails_ends_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The traceback of the failed rank is raised. A rank that ignores SIGTERM gets SIGKILL."""
    monkeypatch.setattr(ranks, "_TO_END", 0.5)
    with pytest.raises(RankError, match=r"exit codes \[-9, 1\](.|\n)*KeyError: 'the culprit'"):
        on_ranks(2, fail_on_second, tmp_path / "ready")


def test_ranks_that_take_too_long_are_ended(tmp_path: Path) -> None:
    """Ranks that take too long are ended, and the error has what they have printed."""
    (tmp_path / "slow.py").write_text("import time; print('said', flush=True); time.sleep(600)")
    both = ranks.start_script(tmp_path / "slow.py", [], 2)
    while both.said("stdout") != "said\nsaid\n":
        assert not both.poll(0.05)
    with pytest.raises(RankError, match=r"not done in 0.1 s(.|\n)*said\nsaid"):
        both.wait(timeout=0.1)
    assert both.codes == [-signal.SIGKILL, -signal.SIGKILL]


def test_a_script_starts_as_python_starts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script finds its arguments, environment and neighbours, and its exit code is returned."""
    (tmp_path / "neighbour.py").write_text("SAYS = 'here'")
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, neighbour\n"
        "os.write(1, (' '.join([__name__, *sys.argv[1:], neighbour.SAYS])).encode())\n"
        "print(os.environ['GIVEN'], 'RANK' in os.environ, file=sys.stderr)\n"
        "sys.exit(3)"
    )
    monkeypatch.setenv("GIVEN", "given")
    done = ranks.run(script, ["first", "second"], check=False)
    assert (done.returncode, done.stdout) == (3, "__main__ first second here")
    assert done.stderr == "given False\n"
    with pytest.raises(RankError, match="given False"):
        ranks.run(script)


def test_nothing_is_left_of_ranks(tmp_path: Path) -> None:
    """Helpers that ranks leave behind are ended, and so are ranks that no test waits for."""
    (helper,) = on_ranks(1, leave_a_helper)
    (tmp_path / "slow.py").write_text("import os, time; print(os.getpid(), flush=True)\nwhile 1: 0")
    begun = ranks.start_script(tmp_path / "slow.py")
    while not begun.said("stdout"):
        assert not begun.poll(0.05)
    rank = int(begun.said("stdout"))
    assert psutil.pid_exists(rank)
    del begun
    deadline = time.monotonic() + 30
    while psutil.pid_exists(rank) or psutil.pid_exists(helper):
        assert time.monotonic() < deadline
        time.sleep(0.05)


SAY = """
import json, os
if os.environ["RANK"] == "1":
    given = {name: os.environ[name] for name in sorted(os.environ)}
    print("environment", json.dumps(given), flush=True)
"""


@pytest.mark.slow
def test_ranks_are_told_what_torchrun_tells_them(
    launch: Launch, torchrun: Launch, tmp_path: Path
) -> None:
    """Forked ranks have the environment variables of torchrun.

    The values are equal, except those of one run alone.
    """
    (tmp_path / "say.py").write_text(SAY)
    of_run = {"MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE"}
    of_readline = {"LINES", "COLUMNS"}  # importing readline sets them
    told = []
    for start in (launch, torchrun):
        said = start(processes=2, recipe=tmp_path / "say.py").stdout
        (line,) = (line for line in said.splitlines() if line.startswith("environment"))
        told.append(json.loads(line.removeprefix("environment")))
    assert set(told[0]) - of_readline == set(told[1]) - of_readline
    for name in set(told[0]) - of_readline - of_run:
        assert told[0][name] == told[1][name], name


SESSION = """
import sys, os
sys.path.insert(0, sys.argv[1])
import ranks
with ranks.session():
    ranks.on_ranks(2, abs, 1)
    print(os.environ[ranks._FOLDER], flush=True)
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["over", "killed"])
def test_servers_end_with_their_session(way: str) -> None:
    """No server is left when its session has ended or was killed."""
    env = {name: value for name, value in os.environ.items() if name != ranks._FOLDER}
    command = [sys.executable, "-c", SESSION, str(Path(__file__).parent), way]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    folder = done.stdout.strip()
    assert folder
    deadline = time.monotonic() + 30
    while any(
        folder in (process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not Path(folder).exists()
