"""The public interface, one line per item; `python tests/interface.py` prints it."""

import argparse
import signal
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import OmegaConf

import nemo_chameleon
from nemo_chameleon import cli, config, embedding, mixture
from nemo_chameleon.config.constraints import constraint_of
from nemo_chameleon.config.data import DatasetConfig, DomainConfig, StageConfig
from nemo_chameleon.config.schema import Config
from nemo_chameleon.utils.preemption import StoppedError, exit_code_of


def described() -> str:
    """Return everything that users build on, one line per item."""
    return "\n".join([*_names(), *_settings(), *_commands(), *_exit_codes()]) + "\n"


def _names() -> Iterator[str]:
    for module in (nemo_chameleon, config, mixture, embedding):
        yield from (f"name {module.__name__}.{name}" for name in sorted(module.__all__))


def _settings() -> Iterator[str]:
    """Yield every key of the configuration with its type, its default and its limits."""
    yield from _keys(OmegaConf.structured(Config), Config, "")


def _keys(node: Any, kind: Any, prefix: str) -> Iterator[str]:
    for item in fields(kind):
        key = prefix + item.name
        if isinstance(item.type, type) and is_dataclass(item.type):
            yield from _keys(node[item.name], item.type, f"{key}.")
            continue
        values: Any = OmegaConf.to_container(node, resolve=False)
        default = values[item.name]
        constraint = constraint_of(item)
        limits = [
            f"{name} {value}" for name, value in vars(constraint).items() if value not in (None, ())
        ]
        for entry, place in ((DomainConfig, "NAME"), (DatasetConfig, "NAME"), (StageConfig, "N")):
            if entry.__name__ in str(item.type):
                yield from _keys(OmegaConf.structured(entry), entry, f"{key}.{place}.")
        kind_name = item.type.__name__ if isinstance(item.type, type) else str(item.type)
        yield f"key {key}: {kind_name} = {default!r}{''.join(f'; {limit}' for limit in limits)}"


def _commands() -> Iterator[str]:
    yield from _arguments(cli._parser())


def _arguments(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield f"command {parser.prog}"
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _arguments(command)
        elif not isinstance(action, argparse._HelpAction):
            name = " ".join(action.option_strings) or action.dest
            choices = f" of {', '.join(map(str, action.choices))}" if action.choices else ""
            required = " required" if action.option_strings and action.required else ""
            many = f" nargs {action.nargs}" if action.nargs not in (None, 0) else ""
            yield f"command {parser.prog}: {name}{many}{choices}{required} = {action.default!r}"


def _exit_codes() -> Iterator[str]:
    yield "exit 2: a UserError"
    yield f"exit {StoppedError.exit_code}: a run that saved and stopped, as it was asked to"
    yield f"exit {exit_code_of(signal.SIGINT)}: stopped by SIGINT, or by a second one"
    yield f"exit {exit_code_of(signal.SIGTERM)}: stopped by a second SIGTERM"


if __name__ == "__main__":
    print(described(), end="")
