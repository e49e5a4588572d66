"""utils/console.py: how programs end, alone and under torchrun."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_chameleon.utils import console, preemption
from nemo_chameleon.utils.console import program
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.preemption import StoppedError
from project import ROOT

INTERRUPTED = """\
import os, signal
from nemo_chameleon.utils.console import program

@program
def main():
    os.kill(os.getpid(), signal.SIGINT)

main()
"""


def test_ctrl_c_is_one_line() -> None:
    """Ctrl-C ends a program with one line on stderr and exit code 130."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "stopped by SIGINT (Ctrl-C)\n")


@pytest.fixture
def of_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process the second one of two that torchrun started."""
    for rank in ("0", "1"):
        (tmp_path / rank).mkdir()
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "1" / "error.json"))
    monkeypatch.setattr(console, "_LET_OTHERS_SPEAK", 0.3)


def code_of(text: str) -> int:
    @program
    def main() -> None:
        raise UserError(text)

    try:
        main()
    except SystemExit as left:
        return int(str(left.code))
    return 0  # torch's `record` returns where a program exits with 0


@pytest.mark.usefixtures("of_rank")
@pytest.mark.parametrize("same", [True, False])
def test_ranks_with_the_same_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], same: bool
) -> None:
    """A rank leaves without an error if the first one has recorded the same, and only then."""
    console._record(tmp_path / "0" / "error.json", "error: bad.key" if same else "error: other")
    assert code_of("bad.key") == (0 if same else 2)
    assert capsys.readouterr().err == ("" if same else "error: bad.key\n")
    assert (tmp_path / "1" / "error.json").exists() is not same


@pytest.mark.usefixtures("of_rank")
def test_a_rank_that_alone_has_an_error(tmp_path: Path) -> None:
    """A rank prints its error if the first one records none, and records it for torchrun."""
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    assert code_of("bad.key") == 2
    file = tmp_path / "1" / "error.json"
    failure = ProcessFailure(1, os.getpid(), 2, str(file))
    assert json.loads(json.dumps(failure.message))["extraInfo"]["py_callstack"] == "error: bad.key"
    assert failure.timestamp > 0


def test_signals_are_reported_as_a_shell_does() -> None:
    """The exit code after Ctrl-C is that of a shell."""
    assert preemption.exit_code_of(signal.SIGINT) == 130


@pytest.mark.parametrize(("error", "code"), [(UserError("why"), 2), (StoppedError("why"), 75)])
def test_codes_of_what_ends_a_run(
    capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    """A mistake and a run that was asked to stop end with one line and codes of their own."""

    @program
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == code
    said = capsys.readouterr().err
    assert said.endswith("why\n")
    assert said.count("\n") == 1


def test_codes_are_documented() -> None:
    """docs/stopping.md has every exit code, and no other one."""
    text = (ROOT / "docs" / "stopping.md").read_text()
    ended = [preemption.exit_code_of(number) for number in preemption.ENDS]
    codes = re.findall(r"^\| (\d+) \|", text, re.MULTILINE)
    assert [int(code) for code in codes] == [0, 1, 2, StoppedError.exit_code, *ended]


LOST = """\
import os, signal
from torch.distributed import DistError
from nemo_chameleon.utils import console, preemption

console._LET_OTHERS_SPEAK = 0

@console.program
def main():
    with preemption.listening() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        while not asked():
            pass
        raise DistError("another rank has ended")

main()
"""


def test_a_rank_that_lost_the_others_ends_by_sigterm() -> None:
    """A rank that got SIGTERM, and cannot stop in order without the others, ends as by SIGTERM."""
    done = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-signal.SIGTERM, "")
