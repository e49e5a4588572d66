"""The command sft: show the examples of a finetuning run as the model will see them."""

import argparse
import sys

from nemo_chameleon.cli.parsing import Parsers, add_command, add_configuration, show
from nemo_chameleon.utils.errors import UserError


def add_sft_commands(commands: Parsers) -> None:
    """Add sft with its action.

    Args:
        commands: the parsers of all commands.
    """
    text = "show examples of a finetuning run as the model will see them"
    sft = add_command(commands, "sft", None, text, "sft preview sft.yaml")
    actions = sft.add_subparsers(required=True, metavar="ACTION")
    text = "show the first examples of each domain, their tokens, and which of them carry loss"
    preview = add_command(actions, "preview", _preview, text, "sft preview sft.yaml -n 1")
    text = "YAML file of the configuration, which may also be given as --config FILE"
    preview.add_argument("file", nargs="?", metavar="CONFIG", help=text)
    add_configuration(preview)
    text = "domain, or set of data.validation, to show (default: all domains)"
    preview.add_argument("--domain", metavar="NAME", help=text)
    text = "examples to show of each domain (default: %(default)s)"
    preview.add_argument("-n", type=int, default=3, metavar="N", help=text)


def _preview(arguments: argparse.Namespace) -> None:
    from nemo_chameleon.config.constraints import nearest
    from nemo_chameleon.config.data import SFT
    from nemo_chameleon.config.loading import load_sft_config
    from nemo_chameleon.data.parts import shown
    from nemo_chameleon.data.sft.display import Style, write_line
    from nemo_chameleon.data.sft.preview import preview
    from nemo_chameleon.data.sft.tokenize import ExampleTokenizer

    if arguments.n < 1:
        raise UserError(f"-n {arguments.n} must be at least 1")
    file, overrides = _configuration(arguments)
    # Nothing is written, so a configuration without a place for output is good enough.
    config = load_sft_config(file, overrides, ["output=."], trained=False)
    data, length = config.data, config.model.seq_length
    if data.dataset != SFT:
        raise UserError(f"data.dataset={data.dataset} has no examples to show: it must be {SFT}")
    sets = {name: ("data.domains", domain.path) for name, domain in data.domains.items()}
    if arguments.domain is not None:
        held_out = {name: ("data.validation", each.path) for name, each in data.validation.items()}
        known = held_out | sets
        if arguments.domain not in known:
            hint = nearest(arguments.domain, known) or f": it has {', '.join(known)}"
            raise UserError(f"the configuration has no domain {arguments.domain!r}{hint}")
        sets = {arguments.domain: known[arguments.domain]}
    reader, style = ExampleTokenizer(data), Style.of(sys.stdout)
    print(style.legend)
    for name, (key, path) in sets.items():
        where = f"{key}.{name}.path"
        show(f"\n{where}={shown(path)}")
        for line in preview(path, data, reader, length, arguments.n, where):
            print(f"\n{write_line(line, style)}", flush=True)


def _configuration(arguments: argparse.Namespace) -> tuple[str | None, list[str]]:
    """Tell the file of the configuration from overrides, which have a "="."""
    given = [arguments.file, *arguments.overrides] if arguments.file else arguments.overrides
    files = [] if arguments.config else [text for text in given if "=" not in text][:1]
    return files[0] if files else arguments.config, [text for text in given if text not in files]
