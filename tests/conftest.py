"""Fixtures: small real datasets, and runs of the recipe in processes of their own."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

import ranks
from nemo_chameleon.utils.logging import show_on_stdout
from project import CONSOLE, RECIPE, ROOT, Console, Launch, texts_of_corpus, write_config

if TYPE_CHECKING:
    from nemo_chameleon.config.schema import Config
    from nemo_chameleon.train.run import TrainingRun

# Every run tries the same examples, and no example has a deadline.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=100)
settings.load_profile("repeatable")

# Commands and recipes do the same. Tests read from stdout what is logged.
show_on_stdout()

# A shell starts background commands with SIGINT ignored, and all processes of tests inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")


def pytest_configure(config: pytest.Config) -> None:
    """Give the session, and its workers, servers that fork ranks."""
    servers = contextlib.ExitStack()
    servers.enter_context(ranks.session())
    config.add_cleanup(servers.close)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Let the servers start their imports while other tests run, if a test needs the servers."""
    used = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    if used & {"launch", "start"} and not session.config.option.collectonly:
        ranks.start_servers()
    # Every layout that a test is done with is collected as garbage, among 400,000 objects of what
    # is imported now and stays: a quarter of a second.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with tokenizer.json and three domains: `code`, `prose` and `legal`.

    Their texts are the standard library's and a licence's, which do not change. This project's own
    source would change the figures of the tests from day to day.
    """
    from nemo_chameleon.data.tokenize import write_dataset
    from nemo_chameleon.data.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("corpus")
    texts = texts_of_corpus()
    tokenizer = train_tokenizer((text for part in texts.values() for text in part), 512)
    for name, documents in texts.items():
        write_dataset(documents, tokenizer, folder / name)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def config_file(corpus: Path, tmp_path: Path) -> Path:
    """Return a configuration that trains a proxy and a base model on `corpus` in seconds."""
    return write_config(corpus, tmp_path)


@pytest.fixture
def mixture(corpus: Path, tmp_path: Path) -> Path:
    """Return a mixture file with weights 0.25 and 0.75 and the paths of its domains."""
    from nemo_chameleon import Mixture

    facts = {name: {"path": str(corpus / name)} for name in ("code", "prose")}
    Mixture({"code": 0.25, "prose": 0.75}, domains=facts).save(tmp_path / "mine.json")
    return tmp_path / "mine.json"


@pytest.fixture
def finetuning(corpus: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Return a mixture file with weights 0.5, 0.3 and 0.2, and a configuration to finetune with."""
    from nemo_chameleon import Mixture
    from sft_data import write_sft_config

    config = write_sft_config(corpus, tmp_path)
    config.write_text(
        config.read_text().replace("  dataset: sft", "  dataset: sft\n  on_too_long: truncate")
    )
    Mixture({"pairs": 0.5, "chats": 0.3, "text": 0.2}).save(tmp_path / "sft.json")
    return tmp_path / "sft.json", config


@pytest.fixture
def launch(config_file: Path) -> Launch:
    """Return a function that runs the recipe on `config_file`.

    It starts one process or, for `processes` ranks, what torchrun would start.
    """

    def run(
        *overrides: str, processes: int = 1, check: bool = True, recipe: Path = RECIPE
    ) -> "subprocess.CompletedProcess[str]":
        arguments = ["--config", str(config_file), *overrides]
        return ranks.run(recipe, arguments, processes if processes > 1 else None, check)

    return run


@pytest.fixture
def torchrun(config_file: Path) -> Launch:
    """Return a function like `launch` that really starts python or torchrun; for `slow` tests."""

    def run(
        *overrides: str, processes: int = 1, check: bool = True, recipe: Path = RECIPE
    ) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable]
        if processes > 1:
            command += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
            command += ["--master_port=0", "--standalone"]
        command += [str(recipe), "--config", str(config_file), *overrides]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
        if check and done.returncode:
            pytest.fail(f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
        return done

    return run


@pytest.fixture(params=["launch", pytest.param("torchrun", marks=pytest.mark.slow)])
def start(request: pytest.FixtureRequest) -> Launch:
    """Return `launch`, and in slow tests also `torchrun`: one test with forks and real starts."""
    run: Launch = request.getfixturevalue(request.param)
    return run


@pytest.fixture
def console(request: pytest.FixtureRequest) -> Console:
    """Return a function that runs `nemo-chameleon` as `launch` does.

    In tests that use `torchrun` as their `start`, it really starts the command.
    """
    real = getattr(getattr(request.node, "callspec", None), "params", {}).get("start") == "torchrun"

    def run(*arguments: str, processes: int = 1) -> "subprocess.CompletedProcess[str]":
        if not real:
            return ranks.run(CONSOLE, arguments, processes if processes > 1 else None)
        command = [str(CONSOLE)]
        if processes > 1:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            command += [f"--nproc_per_node={processes}", "--no-python", str(CONSOLE)]
        command += arguments
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)

    return run


@pytest.fixture(scope="session")
def alone() -> Iterator[None]:
    """Make this process a job of one rank, for code that needs Megatron's parallel state."""
    from nemo_chameleon.distributed.processes import process_group

    with process_group():
        yield


@pytest.fixture
def config(config_file: Path) -> "Config":
    """Return the configuration that `config_file` holds."""
    from nemo_chameleon.config import load_config

    return load_config(config_file)


@pytest.fixture
def job(config: "Config") -> "TrainingRun":
    """Return a run of six iterations of eight samples, whose weights do not divide them evenly.

    It saves a checkpoint after every second iteration.
    """
    from nemo_chameleon.data.indexed import open_indexed
    from nemo_chameleon.mixture import Mixture
    from nemo_chameleon.train.run import TrainingRun

    domains = open_indexed(config.data.domains, config.data.split)
    mixture = Mixture({"code": 0.5, "prose": 0.3, "legal": 0.2}, method={"name": "test"})
    config.checkpoint.save_interval = 2
    return TrainingRun("base", config, config, domains, mixture)
