"""The public interface changes by decision only."""

import difflib
import subprocess
import sys
from pathlib import Path

from interface import described

from project import ROOT

FROZEN = Path(__file__).parent / "data" / "interface.txt"


def test_the_interface_is_the_frozen_one() -> None:
    """Names, keys with defaults, commands with options and exit codes are those of the file."""
    frozen, now = FROZEN.read_text(), described()
    changed = "\n".join(difflib.unified_diff(frozen.splitlines(), now.splitlines(), lineterm=""))
    assert not changed, (
        f"{changed}\nIf the change is meant, add it to CHANGELOG.md and run "
        "`python tests/interface.py > tests/data/interface.txt`"
    )


def test_a_users_mistake_ends_with_2() -> None:
    """The command ends with exit code 2 and one line, and `python -m` is the same command."""
    command = [sys.executable, "-m", "nemo_chameleon", "mixture", "show", "nowhere.json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot read the mixture file nowhere.json")
    assert done.stderr.count("\n") == 1


def test_the_version_is_printed() -> None:
    """`--version` prints the package's version, which is `nemo_chameleon.__version__`."""
    import nemo_chameleon

    command = [sys.executable, "-m", "nemo_chameleon", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == nemo_chameleon.__version__


def test_names_that_moved_are_found_where_they_were() -> None:
    """Hosts' checkpoints name the layers by their former module, and scripts import the chain."""
    code = (
        "from nemo_chameleon.experiment import chain\n"
        "from nemo_chameleon.model import layers\n"
        "from nemo_chameleon.launch.nemo_run import chain as chain_today\n"
        "from nemo_chameleon.models.layers import layer_spec\n"
        "assert chain is chain_today and layers is layer_spec\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
