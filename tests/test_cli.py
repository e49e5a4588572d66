"""cli: the help of every command, and examples in it that work as they are."""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
import yaml
from test_report import UNIFORM, other

from imported import save_llama
from nemo_chameleon import Mixture, cli
from nemo_chameleon.cli.parsing import parse
from nemo_chameleon.method.embeddings import ShardedEmbedding
from nemo_chameleon.method.weights import choose_preset
from nemo_chameleon.mixture.compute import mixture_from_embeddings
from nemo_chameleon.mixture.edit import ComputedMixture
from nemo_chameleon.utils import provenance
from nemo_chameleon.utils.errors import UserError
from project import write_config
from sft_data import write_sft_config


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from commands(command)


PARSERS = {parser.prog: parser for parser in commands(cli._parser())}
# All but those that train or need a proxy; the tests of edits, recipes and comparisons run these.
_TRAINS = ("mixture add", "mixture compute", "nemo-chameleon compare")
EXAMPLES = [
    example
    for parser in PARSERS.values()
    if (example := (parser.epilog or "").split("example:\n  ")[-1])
    and not any(command in example for command in _TRAINS)
]


@pytest.mark.parametrize("parser", PARSERS.values(), ids=PARSERS)
def test_help_has_defaults_and_an_example(parser: argparse.ArgumentParser) -> None:
    """Every argument is explained, an option says its default, and the example can be parsed."""
    for action in parser._actions:
        assert action.help or isinstance(action, argparse._SubParsersAction)
        optional = action.option_strings and not action.required
        if optional and not isinstance(action, argparse._HelpAction | argparse._VersionAction):
            assert "(default: " in (action.help or ""), action.option_strings
    assert parser.epilog is not None
    program, *arguments = shlex.split(parser.epilog.removeprefix("example:\n  "))
    assert program == "nemo-chameleon"
    parsed = cli._parser().parse_args(arguments)
    assert callable(parsed.command)
    assert parser.format_help().endswith(f"{parser.epilog}\n")


def computed(seed: int) -> ComputedMixture:
    """Four domains whose embeddings follow a seed."""
    generator = np.random.default_rng(seed)
    tokens = np.full(8, 100)
    shards = {
        name: ShardedEmbedding(generator.normal(size=(8, 16)).astype(np.float32), tokens)
        for name in ("law", "wiki", "code", "web")
    }
    facts = {
        name: {"path": f"/data/{name}", "tokens": 10_000, "samples": 64, "fingerprint": name}
        for name in shards
    }
    method = {"layer": 2, "samples": 64, "sample_length": 32, "seed": 1, "cross_documents": False}
    mixture = mixture_from_embeddings(
        [shards], facts, objective="pretrain", preset=choose_preset(), method=method
    )
    return ComputedMixture(mixture, [shards])


@pytest.mark.parametrize("command", ["check", "index", "compare", "mixture compute", "plan show"])
def test_a_configuration_may_stand_anywhere(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file needs no --config, settings may stand around it, and other options are refused."""

    def parsed(*given: str) -> argparse.Namespace:
        monkeypatch.setattr(sys, "argv", ["nemo-chameleon", *command.split(), *given])
        return parse(cli._parser())

    for given in (["c.yaml", "a.b=1", "c=2"], ["a.b=1", "c.yaml", "c=2"]):
        assert (parsed(*given).config, parsed(*given).overrides) == ("c.yaml", ["a.b=1", "c=2"])
    for given in (["--config", "c", "a.b=1", "c=2"], ["a.b=1", "--config", "c", "c=2"]):
        assert (parsed(*given).config, parsed(*given).overrides) == ("c", ["a.b=1", "c=2"])
    with pytest.raises(UserError, match="one file"):
        parsed("c.yaml", "d.yaml")
    with pytest.raises(SystemExit):
        parsed("c.yaml", "--a.b=1")
    assert "a setting is written without --, as in a.b=1" in capsys.readouterr().err


@pytest.fixture
def folder(corpus: Path, tmp_path: Path) -> Path:
    """A folder with every file that an example names."""
    shutil.copy(corpus / "tokenizer.json", tmp_path)
    (tmp_path / "wiki.jsonl").write_text(json.dumps({"text": "a document"}) + "\n")
    write_sft_config(corpus, tmp_path).rename(tmp_path / "sft.yaml")
    settings = yaml.safe_load((tmp_path / "sft.yaml").read_text())
    settings["data"]["on_too_long"] = "truncate"
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    mine = write_config(corpus, tmp_path).rename(tmp_path / "mine.yaml")
    mine.write_text(mine.read_text().replace("micro_batch_size: 2", "micro_batch_size: 1"))
    mine.write_text(mine.read_text().replace("global_batch_size: 8", "global_batch_size: 32"))
    shutil.copy(mine, tmp_path / "other.yaml")
    for seed, name in enumerate(("mixture", "one", "two", "before", "after")):
        computed(seed).save(tmp_path / f"{name}.json")
    save_llama(tmp_path / "SmolLM2-135M", corpus / "tokenizer.json")
    (tmp_path / "blend.txt").write_text("0.25 /data/wiki 0.75 /data/code\n")
    for run in (UNIFORM, other(1.9, 1.3)):
        result = tmp_path / "runs" / "mine" / run["run"] / "result.json"
        result.parent.mkdir(parents=True)
        result.write_text(json.dumps(run))
    return tmp_path


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_work(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    example: str,
) -> None:
    """The line in a command's help does what it says, in a folder with the files that it names."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", shlex.split(example))
    cli.main()
    said = capsys.readouterr()
    assert said.out or "--output" in example
    if "--output" in example:
        output = Path(example.split("--output ")[1].split()[0])
        assert output.is_file() or output.with_suffix(".idx").is_file()


def test_a_reader_that_has_seen_enough(tmp_path: Path) -> None:
    """`nemo-chameleon mixture show FILE | head` ends without a traceback."""
    domains = [f"domain {number}" for number in range(3000)]  # more than a pipe holds
    Mixture.uniform(domains).save(tmp_path / "mixture.json")
    command = [sys.executable, "-m", "nemo_chameleon", "mixture", "show", "mixture.json"]
    shown = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ
    )
    assert shown.stdout is not None
    assert shown.stderr is not None
    assert shown.stdout.readline()
    shown.stdout.close()
    assert shown.stderr.read() == b""
    assert shown.wait(timeout=60) == 1
    shown.stderr.close()


def test_a_terminal_obeys_no_name(tmp_path: Path) -> None:
    """Names of files reach a terminal without escape sequences, also one that takes ASCII alone."""
    Mixture.uniform(["\u7ef4\u57fa", "a\x1b[2Jb", "c\nd", "e\u202ef", "g\x9bh"]).save(
        tmp_path / "m.json"
    )
    command = [sys.executable, "-m", "nemo_chameleon", "mixture", "show", "m.json"]
    for encoding in ("ascii", "utf-8"):
        env = {**os.environ, "PYTHONIOENCODING": encoding}
        shown = subprocess.run(command, cwd=tmp_path, capture_output=True, env=env, check=True)
        text = shown.stdout.decode(encoding)
        assert ("\u7ef4\u57fa" if encoding == "utf-8" else r"\u7ef4\u57fa") in text
        for name in (r"a\x1b[2Jb", r"c\nd", r"e\u202ef", r"g\x9bh"):
            assert f"{name}  " in text
        assert not set(text) & set("\x1b\x9b\u202e")


@pytest.mark.parametrize("option", ["--processes", "--proxy-processes"])
def test_no_processes(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A check for 0 processes is refused, and not taken for a check for another number."""
    monkeypatch.setattr(sys, "argv", ["nemo-chameleon", "check", option, "0"])
    with pytest.raises(SystemExit):
        cli.main()
    assert f"error: {option}=0 must be at least 1" in capsys.readouterr().err


def test_a_checkout_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commands work from PYTHONPATH too, where there is no version to print."""

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(provenance, "version", missing)
    monkeypatch.setattr(sys, "argv", ["nemo-chameleon", "doctor"])
    cli.main()
    assert "megatron-core" in capsys.readouterr().out


BREAKS = """
import os
from nemo_chameleon.utils.console import program

@program
def main():
    reader, writer = os.pipe()
    os.close(reader)
    os.write(writer, b"to a helper process that has died")

main()
"""


def test_a_broken_pipe_to_another_process_is_an_error() -> None:
    """Only a closed stdout ends a program quietly; any other broken pipe keeps its traceback."""
    done = subprocess.run([sys.executable, "-c", BREAKS], capture_output=True, text=True)
    assert done.returncode == 1
    assert "BrokenPipeError" in done.stderr
