"""utils/logging.py, utils/ranks.py: the library logs, commands print, and one rank speaks."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_chameleon.utils.logging import EVERY_RANK, package_logger
from nemo_chameleon.utils.ranks import is_first_rank, rank

IN_A_HOST = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(name)s|rank %(rank)s|%(message)s")
from nemo_chameleon.utils.logging import EVERY_RANK, package_logger
logger = package_logger("nemo_chameleon.train")
logger.info("once")
logger.info("everywhere", extra=EVERY_RANK)
"""


@pytest.mark.parametrize(
    ("variables", "expected", "logged"),
    [
        ({}, 0, ["once", "everywhere"]),
        ({"RANK": "3", "LOCAL_RANK": "0"}, 3, ["everywhere"]),
        ({"SLURM_PROCID": "2"}, 2, ["everywhere"]),
        ({"NODE_RANK": "0", "LOCAL_RANK": "0"}, 0, ["once", "everywhere"]),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, 1, ["everywhere"]),
        ({"RANK": "", "SLURM_PROCID": "worker-0"}, 0, ["once", "everywhere"]),
    ],
)
def test_a_host_sees_records_of_its_first_rank(
    variables: dict[str, str], expected: int, logged: list[str]
) -> None:
    """A host's own handler gets the records of the first rank, and nothing is printed."""
    launchers = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    env = {key: value for key, value in os.environ.items() if key not in launchers}
    done = subprocess.run(
        [sys.executable, "-c", IN_A_HOST],
        env={**env, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [f"nemo_chameleon.train|rank {expected}|{text}" for text in logged]
    assert done.stderr.splitlines() == lines
    assert done.stdout == ""


def test_a_command_prints_messages_and_marks_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    """After `show_on_stdout` each message is printed once, and a warning begins with a mark."""
    logger = package_logger("nemo_chameleon.train")
    assert package_logger("nemo_chameleon.train") is logger
    logger.info("it %s", "works")
    logger.warning("look here")
    assert capsys.readouterr().out == "it works\nnote: look here\n"


def test_other_ranks_say_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the processes have met, torchrun's RANK decides which of them logs."""
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: False)
    monkeypatch.setenv("RANK", "1")
    assert rank() == 1
    assert not is_first_rank()
    package_logger("nemo_chameleon.train").info("from rank 1")
    package_logger("nemo_chameleon.train").info("from all", extra=EVERY_RANK)
    assert capsys.readouterr().out == "from all\n"


def test_the_library_prints_nothing() -> None:
    """Only the command line and utils/console.py call print."""
    package = Path(package_logger.__code__.co_filename).parents[1]
    printing = [
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(r"(?<![\w.])print\(", path.read_text())
    ]
    others = {module for module in printing if not module.startswith("cli/")}
    assert others == {"utils/console.py"}
