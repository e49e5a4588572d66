"""What the parsers of all commands share: their help, and an example in it that works."""

import argparse
from collections.abc import Callable
from typing import Any

Command = Callable[[argparse.Namespace], None]
Parsers = Any  # what add_subparsers gives; argparse has no public name for it
CONFIG = "YAML file of the configuration (default: none, every setting as KEY=VALUE)"
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


def epilog(arguments: str) -> str:
    """Return the end of a help text: an example.

    Args:
        arguments: arguments of `nemo-chameleon`.

    Returns:
        The text.
    """
    return f"example:\n  nemo-chameleon {arguments}"
