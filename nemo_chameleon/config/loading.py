"""Reading the configuration.

The file replaces the defaults in schema.py, and the command line replaces both. An unknown key is
an error that names the most similar known one. validation.py checks the result.
"""

import argparse
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_origin

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    GrammarParseError,
    InterpolationResolutionError,
    OmegaConfBaseException,
    ValidationError,
)
from yaml import YAMLError

from nemo_chameleon.config.constraints import require_valid
from nemo_chameleon.config.data import SFT, require_path, require_paths
from nemo_chameleon.config.keys import (
    dotted,
    split_arguments,
    split_override,
    typed,
    unknown_options,
)
from nemo_chameleon.config.layers import keys_of, refuse_unknown_keys, replace_values
from nemo_chameleon.config.places import require_places
from nemo_chameleon.config.schema import Config
from nemo_chameleon.config.values import read_override, read_yaml, type_at
from nemo_chameleon.utils.errors import UserError, reason_of
from nemo_chameleon.utils.yaml_text import not_yaml

# OmegaConf 2.4 renamed register_new_resolver to register_resolver. In 2.3, which NeMo requires,
# register_resolver is an older function without the parameter `replace`.
_takes = inspect.signature(OmegaConf.register_resolver).parameters
_register = OmegaConf.register_resolver if "replace" in _takes else OmegaConf.register_new_resolver
_register("gcd", math.gcd, replace=True)
_register("of_dataset", lambda dataset, gpt, sft: sft if dataset == SFT else gpt, replace=True)


def load_config(
    file: str | Path | None, overrides: Sequence[str] = (), defaults: Sequence[str] = ()
) -> Config:
    """Read a configuration.

    Args:
        file: a YAML file; None for the defaults only.
        overrides: texts `key=value` with dotted keys, which replace what the file has.
        defaults: texts of the same form, which replace the schema's defaults.

    Returns:
        The configuration. Its keys, types and paths are checked, but not its other values.

    Raises:
        UserError: a file cannot be read, a key is unknown, missing or of the wrong type, or a path
            has ~ or $NAME, which only a shell replaces. The error names the key or the file.
    """
    layers = [_override_layer(override) for override in defaults]
    layers += [] if file is None else [_file_layer(file)]
    layers += [_override_layer(override) for override in overrides]
    settings: dict[str, Any] = {}
    for layer in layers:
        refuse_unknown_keys(layer)
        replace_values(settings, layer)
    source = overrides[-1] if overrides else str(file)
    merged: Any = OmegaConf.structured(Config)
    try:
        # OmegaConf copies everything at every merge, so there is one merge.
        merged = OmegaConf.merge(merged, settings)
        if missing := _missing(merged):
            key = dotted(missing)
            raise UserError(f"{key} is not set; set it in the file or as {typed(missing)}")
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = _unresolved(merged, settings) or error.full_key or source
        raise UserError(f"{key}: {_reason(error)}") from error
    except (TypeError, OverflowError, RecursionError) as error:  # where a "${" leads
        raise UserError(f"{source}: {_one_line(error)}") from error
    assert isinstance(config, Config)
    require_paths(config.data)
    require_places(config)
    return config


def _file_layer(file: str | Path) -> dict[str, Any]:
    try:
        layer = read_yaml(Path(file).read_bytes().decode("utf-8-sig"), Config)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the configuration {file}: {reason_of(error)}") from error
    except YAMLError as error:
        raise UserError(f"cannot read the configuration {file}: {not_yaml(error)}") from error
    except RecursionError as error:
        raise UserError(f"cannot read the configuration {file}: nested too deeply") from error
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    if layer is not None and not isinstance(layer, dict):
        raise UserError(f"the configuration {file} must be a mapping of keys to values")
    return layer or {}


def _override_layer(override: str) -> dict[str, Any]:
    parts, text = split_override(override)
    value = _typed_value(text, type_at(Config, parts), parts)
    for part in reversed(parts):
        value = {part: value}
    return dict(value)


def parse_path(text: str, name: str) -> str | list[str]:
    """Read the path of a domain from a command line, as in a configuration.

    Args:
        text: as it was typed: a path, a glob, or a list in brackets.
        name: of the domain; errors begin with it.

    Returns:
        The path, or the list of paths.

    Raises:
        UserError: the text is neither.
    """
    return require_path(_typed_value(text, Any, (name,)), name)


def _typed_value(text: str, wanted: Any, parts: tuple[str, ...]) -> Any:
    try:
        return read_override(text, wanted, parts)
    except UnicodeEncodeError as error:  # bytes that are not UTF-8, as the command line gives them
        raise UserError(
            f"{dotted(parts)}={text!r:.80} is not UTF-8: rename the file if it is the name of one"
        ) from error
    except (YAMLError, RecursionError) as error:
        example = '["..."]' if get_origin(wanted) is list else '"..."'
        raise UserError(
            f"{f'{dotted(parts)}={text}'[:80]!r} is not a value in YAML: put it into quotes, as in "
            f"{typed(parts, example)}"
        ) from error


def _unresolved(merged: Any, settings: Mapping[str, Any]) -> str | None:
    """Return the key of a file or a command line whose value refers to what does not exist."""
    for parts in keys_of(settings):
        try:
            node = merged
            for part in parts:
                node = node[part]
        except InterpolationResolutionError:
            return dotted(parts)
        except (OmegaConfBaseException, LookupError, TypeError):
            continue
    return None


def _missing(merged: DictConfig) -> tuple[str, ...] | None:
    """Return the parts of a key that is not set, or None."""
    for section in ("domains", "validation"):
        for name, entry in merged.data[section].items():
            if entry is not None and OmegaConf.is_missing(entry, "path"):
                return ("data", section, str(name), "path")
    # A key that takes its value from a missing key is missing too. Name the key to set.
    others = sorted(OmegaConf.missing_keys(merged), key=lambda key: (_derived(merged, key), key))
    return tuple(others[0].split(".")) if others else None


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


def load_sft_config(
    file: str | Path | None,
    overrides: Sequence[str] = (),
    defaults: Sequence[str] = (),
    *,
    trained: bool = True,
) -> Config:
    """Read a configuration for finetuning: data.dataset is sft by default.

    Args:
        file: a YAML file; None for the defaults only.
        overrides: texts `key=value` with dotted keys.
        defaults: texts of the same form, which replace the schema's defaults.
        trained: whether a model is trained; else train.train_iters and train.global_batch_size need
            not be set, as for `load_mixture_config`.

    Returns:
        The configuration, as `load_config` returns it; the values of `data` and `model` are checked
        too, because examples are read and packed before a run checks the rest.

    Raises:
        UserError: as `load_config`, or a value of `data` or `model` is not allowed.
    """
    load = load_config if trained else load_mixture_config
    config = load(file, overrides, (f"data.dataset={SFT}", *defaults))
    require_valid(config.data, "data.", config.data.dataset)
    require_valid(config.model, "model.")
    return config


def parse_command_line(
    arguments: Sequence[str] | None = None,
    load: Callable[[str | None, Sequence[str]], Config] = load_config,
) -> Config:
    """Read a configuration from a command line of the form `[--config FILE] key=value ...`.

    The file may also stand without --config, if its name ends in .yaml or .yml.

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
    parsed, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        raise UserError(unknown_options(unknown))
    return load(*split_arguments(parsed.config, parsed.overrides))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _derived(config: DictConfig, key: str) -> bool:
    parent, _, last = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    return isinstance(node, DictConfig) and OmegaConf.is_interpolation(node, last)


def _reason(error: OmegaConfBaseException) -> str:
    """Say in one line what OmegaConf refused, which is what a '${' leads to, and what to do."""
    if isinstance(error, GrammarParseError):
        return "a '${' has no end that can be read: close its brace, or write \\${ for the text"
    text = _one_line(error)
    if "Recursive" in text:
        return "its '${...}' leads back to itself: write a value in its place"
    if isinstance(error, ValidationError):
        return "what its '${...}' stands for is of another type: write a value in its place"
    if not isinstance(error, InterpolationResolutionError):
        return text
    text = text.rpartition("resolving interpolation: ")[2].strip('"')
    if "Environment variable" in text:
        return f"{text}; set it, or write ${{oc.env:NAME,DEFAULT}}"
    if not_found := re.search("'(.*)' not found", text):
        name = not_found[1]
        variable = f", or write ${{oc.env:{name}}} for an environment variable"
        return f"{text}; correct the key in '${{...}}'{variable if name.isidentifier() else ''}"
    return f"{text}; write ${{KEY}} or ${{oc.env:NAME}}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split("full_key:")[0].split())
