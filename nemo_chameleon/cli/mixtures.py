"""The command mixture: compute, show, compare, check, change, export and import mixtures."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from nemo_chameleon.cli.parsing import (
    Command,
    Parsers,
    add_command,
    add_configuration,
    at_least_one,
    show,
)
from nemo_chameleon.config.loading import parse_path
from nemo_chameleon.config.places import require_name
from nemo_chameleon.config.schema import CAVEAT_KEYS, Config
from nemo_chameleon.method.weights import OBJECTIVES, PRESETS
from nemo_chameleon.mixture import Mixture
from nemo_chameleon.mixture.edit import ComputedMixture, averaged
from nemo_chameleon.mixture.formats import FORMATS, export_mixture, import_mixture
from nemo_chameleon.mixture.tables import diff_mixtures, show_mixture
from nemo_chameleon.utils.errors import UserError, reason_of
from nemo_chameleon.utils.files import write_atomically
from nemo_chameleon.utils.tables import printable

_COMPUTED = "computed mixture, with its embeddings beside it"


def add_mixture_commands(commands: Parsers) -> None:
    """Add mixture with its actions.

    Args:
        commands: the parsers of all commands.
    """
    text = "compute, show, compare, check, change, export and import mixture files"
    example = "mixture diff before.json after.json"
    mixture = add_command(commands, "mixture", None, text, example)
    actions = mixture.add_subparsers(required=True, metavar="ACTION")

    text = "show the weights by domain, and how they were computed"
    show = add_command(actions, "show", _show, text, "mixture show mixture.json")
    show.add_argument("file", metavar="FILE", help="mixture file")
    example = "mixture diff before.json after.json"
    diff = add_command(actions, "diff", _diff, "show how two mixtures differ", example)
    diff.add_argument("files", nargs=2, metavar="FILE", help="mixture file")
    text = "check mixture files; exit with code 2 and an error for each file that is not valid"
    validate = add_command(actions, "validate", _validate, text, "mixture validate mixture.json")
    validate.add_argument("files", nargs="+", metavar="FILE", help="mixture file")

    text = "compute a mixture and stop, for instance for a host that trains the base model"
    example = "mixture compute --config mine.yaml chameleon.file=mixture.json"
    compute = add_command(actions, "compute", _compute, text, example)
    add_configuration(compute)

    def changing(name: str, command: Command, text: str, example: str) -> argparse.ArgumentParser:
        parser = add_command(actions, name, command, text, f"mixture {name} mixture.json {example}")
        parser.add_argument("file", metavar="FILE", help=_COMPUTED)
        text = "write here instead of changing FILE (default: FILE)"
        parser.add_argument("--output", metavar="FILE", help=text)
        return parser

    text = "embed new domains with the mixture's proxy, and compute all weights again"
    add = changing("add", _add, text, "law=/data/law_text_document")
    text = "name of a new domain, and its path as in a configuration"
    add.add_argument("domains", nargs="+", metavar="NAME=PATH", help=text)
    add.add_argument(
        "--proxy",
        action="append",
        default=[],
        metavar="FOLDER",
        help="where the proxy's checkpoint is now; repeat it for each proxy of an averaged mixture "
        "(default: the folder that FILE records)",
    )
    text = "where the tokenizer of the domains is now (default: the file that FILE records)"
    add.add_argument("--tokenizer", metavar="TOKENIZER", help=text)
    text = "windows that each process embeds at once (default: 32 on CUDA, 4 on a CPU)"
    add.add_argument("--micro-batch-size", type=int, metavar="N", help=text)
    text = "remove domains, and compute the weights of the others again"
    remove = changing("remove", _remove, text, "law")
    remove.add_argument("domains", nargs="+", metavar="NAME", help="domain to remove")
    text = "compute the weights again with other settings"
    rescore = changing("rescore", _rescore, text, "--preset paper")
    text = "draw common domains more (pretrain) or distinct ones (finetune) (default: as in FILE)"
    rescore.add_argument("--objective", choices=OBJECTIVES, help=text)
    text = "formula that turns scores into weights (default: as in FILE)"
    rescore.add_argument("--preset", choices=PRESETS, help=text)
    for setting, text in (
        ("ridge", "ridge: a share of the mean self-affinity (calibrated), or absolute (paper)"),
        ("exponent", "exponent of the calibrated preset"),
        ("min-effective", "least effective number of domains, as a share of their number"),
    ):
        text += " (default: as in FILE, or the preset's own if --preset changes it)"
        rescore.add_argument(f"--{setting}", type=float, metavar="X", help=text)

    text = "average mixtures of the same domains that were computed through different proxies"
    example = "mixture average one.json two.json --output both.json"
    average = add_command(actions, "average", _average, text, example)
    average.add_argument("files", nargs="+", metavar="FILE", help=_COMPUTED)
    average.add_argument("--output", metavar="FILE", required=True, help="mixture file to write")

    text = "write a mixture in another tool's format, and explain its numbers on stderr"
    example = "mixture export mixture.json --format megatron --output blend.txt"
    export = add_command(actions, "export", _export, text, example)
    export.add_argument("file", metavar="FILE", help="mixture file")
    export.add_argument("--format", choices=FORMATS, required=True, help="format to write")
    export.add_argument("--output", metavar="FILE", help="file to write (default: stdout)")

    text = "make a mixture file from another tool's weights"
    example = "mixture import blend.txt --format megatron --output mixture.json"
    take = add_command(actions, "import", _import, text, example)
    take.add_argument("file", metavar="FILE", help="file of the other tool")
    take.add_argument("--format", choices=FORMATS, required=True, help="format of FILE")
    take.add_argument("--output", metavar="FILE", required=True, help="mixture file to write")


def _show(arguments: argparse.Namespace) -> None:
    show(show_mixture(Mixture.load(arguments.file)))


def _diff(arguments: argparse.Namespace) -> None:
    show(diff_mixtures(*map(Mixture.load, arguments.files)))


def _validate(arguments: argparse.Namespace) -> None:
    faults = []
    for file in arguments.files:
        try:
            show(f"{file}: {len(Mixture.load(file).weights)} domains, valid")
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError("\nerror: ".join(faults))


def _compute(arguments: argparse.Namespace) -> None:
    from nemo_chameleon.config import load_mixture_config

    compute_mixture(load_mixture_config(arguments.config, arguments.overrides))


def compute_mixture(config: Config) -> None:
    """Compute the mixture of a configuration and show it; every process of the job must call it.

    Args:
        config: the whole configuration; keys of the base model are not used.
    """
    from nemo_chameleon import provider
    from nemo_chameleon.distributed.processes import process_group
    from nemo_chameleon.utils.ranks import is_first_rank

    with process_group():
        mixture = provider.unbounded_mixture(provider.prepare_mixture(config))
        if is_first_rank():
            show(show_mixture(mixture))


def _add(arguments: argparse.Namespace) -> None:
    from nemo_chameleon.distributed.processes import process_group
    from nemo_chameleon.provider.new_domains import embed_new
    from nemo_chameleon.utils.ranks import is_first_rank

    _require_writable(arguments)
    pairs = [domain.partition("=") for domain in arguments.domains]
    for (name, _, path), given in zip(pairs, arguments.domains, strict=True):
        if not name or not path:
            raise UserError(f"{given!r} is not of the form NAME=PATH")
    at_least_one("--micro-batch-size", arguments.micro_batch_size)
    paths = {name: parse_path(path, name) for name, _, path in pairs}
    if len(paths) < len(pairs):
        names = [name for name, _, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"domain {twice!r} is given twice")
    before = ComputedMixture.load(arguments.file, CAVEAT_KEYS)
    # By default this is data.cache of the run that computed the mixture.
    cache = str(Path(arguments.file).parent / "cache")
    with process_group():
        embedded = embed_new(
            before, paths, arguments.proxy, arguments.micro_batch_size, arguments.tokenizer, cache
        )
        if is_first_rank():
            _change(arguments, before, before.with_domains(*embedded))


def _remove(arguments: argparse.Namespace) -> None:
    _require_writable(arguments)
    before = ComputedMixture.load(arguments.file, CAVEAT_KEYS)
    _change(arguments, before, before.without(arguments.domains))


def _rescore(arguments: argparse.Namespace) -> None:
    _require_writable(arguments)
    before = ComputedMixture.load(arguments.file, CAVEAT_KEYS)
    after = before.rescored(
        arguments.objective,
        preset=arguments.preset,
        ridge=arguments.ridge,
        exponent=arguments.exponent,
        min_effective=arguments.min_effective,
    )
    _change(arguments, before, after)


def _average(arguments: argparse.Namespace) -> None:
    _require_writable(arguments, arguments.files)
    parts = [ComputedMixture.load(file, CAVEAT_KEYS) for file in arguments.files]
    _change(arguments, parts[0], averaged(parts))


def _require_writable(arguments: argparse.Namespace, read: Sequence[str] = ()) -> None:
    """Check --output before anything is computed.

    Args:
        arguments: the parsed arguments.
        read: the files that are read, none of which may be replaced.

    Raises:
        UserError: it is a folder or one of these files.
    """
    output = arguments.output
    if output is None:
        return
    require_name(output, "--output", "mixture.json")
    for file in read:
        if Path(output).exists() and Path(file).exists() and Path(output).samefile(file):
            other = Path(output).with_name(f"{Path(output).stem}-new.json")
            raise UserError(
                f"--output {output} is the file that is read, which would be lost: name another "
                f"one, for instance --output {shlex.quote(str(other))}"
            )


def _change(arguments: argparse.Namespace, before: ComputedMixture, after: ComputedMixture) -> None:
    after.save(arguments.file if arguments.output is None else arguments.output)
    show(diff_mixtures(before.mixture, after.mixture))
    for caveat in after.mixture.method["caveats"]:
        show(f"note: {caveat}")


def _export(arguments: argparse.Namespace) -> None:
    _require_writable(arguments, [arguments.file])
    text = export_mixture(Mixture.load(arguments.file), arguments.format)
    print(f"{arguments.format}: {FORMATS[arguments.format].meaning}", file=sys.stderr)
    if arguments.output is None:
        # A file gets every character, a terminal none that it would obey.
        print(printable(text) if sys.stdout.isatty() else text, end="")
        return
    try:
        write_atomically(Path(arguments.output), text)
    except OSError as error:
        raise UserError(f"cannot write {arguments.output}: {reason_of(error)}") from error


def _import(arguments: argparse.Namespace) -> None:
    _require_writable(arguments, [arguments.file])
    try:
        text = Path(arguments.file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {arguments.file}: {reason_of(error)}") from error
    mixture = import_mixture(text, arguments.format, arguments.file)
    mixture.save(arguments.output)
    show(show_mixture(mixture))
