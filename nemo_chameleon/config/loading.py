"""Reading the configuration.

The file replaces the defaults in schema.py, and the command line replaces both. An unknown key is
an error that names the most similar known one. validation.py checks the result.
"""

import argparse
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nemo_chameleon.config.constraints import nearest
from nemo_chameleon.config.data import SFT, DatasetConfig, DomainConfig
from nemo_chameleon.config.schema import Config
from nemo_chameleon.utils.errors import UserError

# OmegaConf 2.4 renamed register_new_resolver to register_resolver. In 2.3, which NeMo requires,
# register_resolver is an older function without the parameter `replace`.
_takes = inspect.signature(OmegaConf.register_resolver).parameters
_register = OmegaConf.register_resolver if "replace" in _takes else OmegaConf.register_new_resolver
_register("gcd", math.gcd, replace=True)
_register("of_dataset", lambda dataset, gpt, sft: sft if dataset == SFT else gpt, replace=True)


# The keys of `data` whose entries have names that the user chooses, with the type of an entry.
_BY_DOMAIN: dict[str, type | None] = {
    "domains": DomainConfig,
    "validation": DatasetConfig,
    "pin": None,
    "floor": None,
}


def load_config(
    file: str | Path | None, overrides: Sequence[str] = (), defaults: Sequence[str] = ()
) -> Config:
    """Read a configuration.

    Args:
        file: a YAML file; None for the defaults only.
        overrides: texts `key=value` with dotted keys, which replace what the file has.
        defaults: texts of the same form, which replace the schema's defaults.

    Returns:
        The configuration. Its keys and types are checked, but not its values.

    Raises:
        UserError: a file cannot be read, or a key is unknown, missing or of the wrong type. The
            error names the key or the file.
    """
    layers: list[tuple[str, DictConfig]] = []
    if file is not None:
        try:
            layer = OmegaConf.load(file)
        except (OSError, YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the configuration {file}: {_one_line(error)}") from error
        if not isinstance(layer, DictConfig):
            raise UserError(f"the configuration {file} must be a mapping of keys to values")
        layers.append((str(file), layer))
    for override in overrides:
        if "=" not in override or override.startswith(("-", "=")):
            raise UserError(f"{override!r} is not a key=value override")
        try:
            layers.append((override, OmegaConf.from_dotlist([override])))
        except (OmegaConfBaseException, YAMLError) as error:
            raise UserError(f"{override!r}: {_one_line(error)}") from error
    source = str(file)
    try:
        merged: Any = OmegaConf.merge(
            OmegaConf.structured(Config), OmegaConf.from_dotlist([*defaults])
        )
        for source, layer in layers:  # noqa: B007  # named in the except below
            _refuse_unknown_keys(layer)
            merged = OmegaConf.merge(merged, layer)
        # A key that takes its value from a missing key is missing too. Name the key to set.
        missing = sorted(
            OmegaConf.missing_keys(merged), key=lambda key: (_derived(merged, key), key)
        )
        if missing:
            raise UserError(f"{missing[0]} is not set; set it in the file or as {missing[0]}=...")
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key or source}: {_one_line(error)}") from error
    except TypeError as error:  # a list where a mapping belongs
        raise UserError(f"{source}: {_one_line(error)}") from error
    assert isinstance(config, Config)
    return config


def load_mixture_config(
    file: str | Path | None, overrides: Sequence[str] = (), defaults: Sequence[str] = ()
) -> Config:
    """Read a configuration whose base model is trained elsewhere or not at all.

    The keys train.train_iters and train.global_batch_size need not be set, and are not used.

    Args:
        file: a YAML file; None for the defaults only.
        overrides: texts `key=value` with dotted keys.
        defaults: texts of the same form, which replace the schema's defaults.

    Returns:
        The configuration, as `load_config` returns it.

    Raises:
        UserError: as `load_config`.
    """
    base = ("train.train_iters=1", "train.global_batch_size=1", "train.eval_iters=0")
    return load_config(file, [*overrides, *base], defaults)


def load_sft_config(file: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration for finetuning: data.dataset is sft by default.

    Args:
        file: a YAML file; None for the defaults only.
        overrides: texts `key=value` with dotted keys.

    Returns:
        The configuration, as `load_config` returns it.

    Raises:
        UserError: as `load_config`.
    """
    return load_config(file, overrides, (f"data.dataset={SFT}",))


def parse_command_line(
    arguments: Sequence[str] | None = None,
    load: Callable[[str | None, Sequence[str]], Config] = load_config,
) -> Config:
    """Read a configuration from a command line of the form `[--config FILE] key=value ...`.

    Args:
        arguments: of the command line; None for those of this process.
        load: reads the configuration from a file and overrides.

    Returns:
        The configuration.

    Raises:
        UserError: an option is unknown, or as `load_config`.
    """
    parser = _Parser(
        description="nemo_chameleon/config/schema.py lists every key with its default and meaning."
    )
    parser.add_argument("--config", metavar="FILE", help="a YAML file; default: no file")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="replaces a value of the file, for instance train.seed=5",
    )
    parsed = parser.parse_intermixed_args(arguments)
    return load(parsed.config, parsed.overrides)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _derived(config: DictConfig, key: str) -> bool:
    parent, _, last = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    return isinstance(node, DictConfig) and OmegaConf.is_interpolation(node, last)


def _refuse_unknown_keys(layer: DictConfig) -> None:
    known = list(_known_keys(Config, ""))
    for parts in _keys(OmegaConf.to_container(layer, resolve=False), ()):
        # The user chooses a domain's name, but not the keys under it.
        named = parts[0] == "data" and len(parts) > 2 and parts[1] in _BY_DOMAIN
        generic = ".".join((*parts[:2], "NAME", *parts[3:]) if named else parts)
        if generic not in known:
            hint = nearest(generic, known).replace("NAME", parts[2] if named else "<name>")
            raise UserError(f"unknown key {'.'.join(parts)}{hint}")


def _known_keys(cls: type, prefix: str) -> Iterable[str]:
    for item in fields(cls):
        key = prefix + item.name
        yield key
        if prefix == "data." and item.name in _BY_DOMAIN:
            yield key + ".NAME"
            if (settings := _BY_DOMAIN[item.name]) is not None:
                yield from _known_keys(settings, key + ".NAME.")
        elif isinstance(item.type, type) and is_dataclass(item.type):
            yield from _known_keys(item.type, key + ".")


def _keys(node: Any, above: tuple[str, ...]) -> Iterable[tuple[str, ...]]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield (*above, str(name))
            yield from _keys(value, (*above, str(name)))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split("full_key:")[0].split())
