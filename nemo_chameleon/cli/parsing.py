"""What the parsers of all commands share: their help, and an example in it that works."""

import argparse
from collections.abc import Callable
from typing import Any

from nemo_chameleon.config.keys import split_arguments, unknown_options
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.tables import printable

Command = Callable[[argparse.Namespace], None]
Parsers = Any  # what add_subparsers gives; argparse has no public name for it
OVERRIDES = "setting that replaces the file's, such as data.mixture=uniform (default: none)"


def add_command(
    parsers: Parsers, name: str, command: Command | None, text: str, example: str
) -> argparse.ArgumentParser:
    """Add a parser for a command.

    Args:
        parsers: what `add_subparsers` returned.
        name: the command, as it is typed.
        command: called with the parsed arguments; None for a command that has subcommands.
        text: what the command does; the help begins with it.
        example: arguments of `nemo-chameleon` that work as they are; the help ends with them.

    Returns:
        The parser.
    """
    parser: argparse.ArgumentParser = parsers.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=epilog(example),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=command)
    return parser


def add_configuration(parser: argparse.ArgumentParser) -> None:
    """Add the arguments from which a configuration is loaded: --config and overrides.

    Args:
        parser: of the command.
    """
    text = (
        "YAML file of the configuration, which may also stand without --config if it ends in .yaml "
        "(default: none, every setting as KEY=VALUE)"
    )
    parser.add_argument("--config", metavar="FILE", help=text)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=OVERRIDES)


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line; overrides may stand before, between and after options.

    Args:
        parser: of all commands.

    Returns:
        The parsed arguments.
    """
    # parse_intermixed_args does not know subcommands.
    parsed, rest = parser.parse_known_args()
    takes_more = "overrides" in parsed
    unknown = [given for given in rest if given.startswith("-") or not takes_more]
    if unknown:
        parser.error(unknown_options(unknown))
    if takes_more:
        given = [*parsed.overrides, *rest]
        parsed.config, parsed.overrides = split_arguments(parsed.config, given)
    return parsed


def show(text: str) -> None:
    """Print what a command has to say, without control characters from names in files.

    Args:
        text: one or more lines.
    """
    print(printable(text), flush=True)


def at_least_one(option: str, value: int | None) -> None:
    """Refuse a number that is below 1.

    Args:
        option: as it is typed.
        value: what was typed; None if nothing was.

    Raises:
        UserError: the number is below 1.
    """
    if value is not None and value < 1:
        raise UserError(f"{option}={value} must be at least 1")


def epilog(arguments: str) -> str:
    """Return the end of a help text: an example.

    Args:
        arguments: arguments of `nemo-chameleon`.

    Returns:
        The text.
    """
    return f"example:\n  nemo-chameleon {arguments}"
