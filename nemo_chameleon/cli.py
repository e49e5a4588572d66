"""The command `nemo-chameleon`: work around a run, from a shell.

prepare   tokenise text into Megatron datasets
index     tokenise the JSONL of a finetuning run before the run
import-hf convert a Hugging Face model into a checkpoint
mixture   show, compare, check, change, export and import mixture files
check     check a configuration before its jobs are submitted
report    compare finished runs in a table
doctor    show what is installed, and what works with it
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nemo_chameleon.config.schema import CAVEAT_KEYS
from nemo_chameleon.method.weights import OBJECTIVES, PRESETS
from nemo_chameleon.mixture import Mixture
from nemo_chameleon.mixture.edit import ComputedMixture, averaged
from nemo_chameleon.mixture.formats import FORMATS, export_mixture, import_mixture
from nemo_chameleon.mixture.tables import diff_mixtures, show_mixture
from nemo_chameleon.train.report import compare, read_result
from nemo_chameleon.utils.console import program
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import write_atomically
from nemo_chameleon.utils.provenance import package_version
from nemo_chameleon.utils.tables import table

Command = Callable[[argparse.Namespace], None]
Parsers = Any  # what add_subparsers gives; argparse has no public name for it
_CONFIG = "YAML file of the configuration (default: none, every setting as KEY=VALUE)"
_OVERRIDES = "setting that replaces the file's, such as data.mixture=uniform (default: none)"
_COMPUTED = "computed mixture, with its embeddings beside it"


@program
def main() -> None:
    """Run the command that the arguments name."""
    arguments = _parser().parse_args()
    arguments.command(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nemo-chameleon",
        description="Prepare data, check configurations, and work with mixtures and runs.",
        epilog=_example("mixture show mixture.json"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=package_version())
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    example = "prepare --tokenizer tokenizer.json --output data/wiki wiki.jsonl"
    text = "tokenise JSONL files into a Megatron dataset"
    prepare = _command(commands, "prepare", _prepare, text, example)
    prepare.add_argument("files", nargs="+", metavar="FILE", help="JSONL, one document per line")
    prepare.add_argument("--tokenizer", required=True, metavar="FILE", help="tokenizer.json")
    text = "write PREFIX.bin and PREFIX.idx"
    prepare.add_argument("--output", required=True, metavar="PREFIX", help=text)
    text = "key of the document in each line (default: %(default)s)"
    prepare.add_argument("--key", default="text", help=text)

    text = "tokenise the JSONL of a finetuning run before the run, and count what there is"
    index = _command(commands, "index", _index, text, "index --config sft.yaml")
    index.add_argument("--config", metavar="FILE", help=_CONFIG)
    index.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=_OVERRIDES)

    text = "convert a Hugging Face model like Llama into a checkpoint, and print its settings"
    take = _command(commands, "import-hf", _import_hf, text, "import-hf SmolLM2-135M imported")
    take.add_argument("folder", metavar="FOLDER", help="folder of the Hugging Face model")
    take.add_argument("output", metavar="OUTPUT", help="folder to write, which must not exist")

    text = "check a configuration and its data before its jobs are submitted"
    example = "check --config mine.yaml --processes 32"
    check = _command(commands, "check", _check, text, example)
    check.add_argument("--config", metavar="FILE", help=_CONFIG)
    text = "processes that train the base model (default: %(default)s)"
    check.add_argument("--processes", type=int, default=1, metavar="N", help=text)
    text = "processes that train the proxy (default: as many as --processes)"
    check.add_argument("--proxy-processes", type=int, metavar="N", help=text)
    check.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=_OVERRIDES)

    text = "show, compare, check, change, export and import mixture files"
    example = "mixture diff before.json after.json"
    mixture = _command(commands, "mixture", None, text, example)
    _add_mixture_actions(mixture.add_subparsers(required=True, metavar="ACTION"))

    text = "show what finished runs drew from each domain, and their validation losses"
    example = "report runs/mine/uniform runs/mine/chameleon"
    report = _command(commands, "report", _report, text, example)
    report.add_argument("runs", nargs="+", metavar="FOLDER", help="folder of a finished run")

    _command(commands, "doctor", _doctor, "show what is installed and what works with it", "doctor")
    return parser


def _add_mixture_actions(actions: Parsers) -> None:
    text = "show the weights by domain, and how they were computed"
    show = _command(actions, "show", _show, text, "mixture show mixture.json")
    show.add_argument("file", metavar="FILE", help="mixture file")
    example = "mixture diff before.json after.json"
    diff = _command(actions, "diff", _diff, "show how two mixtures differ", example)
    diff.add_argument("files", nargs=2, metavar="FILE", help="mixture file")
    text = "check mixture files; exit with code 2 and an error for each file that is not valid"
    validate = _command(actions, "validate", _validate, text, "mixture validate mixture.json")
    validate.add_argument("files", nargs="+", metavar="FILE", help="mixture file")

    def changing(name: str, command: Command, text: str, example: str) -> argparse.ArgumentParser:
        parser = _command(actions, name, command, text, f"mixture {name} mixture.json {example}")
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
    average = _command(actions, "average", _average, text, example)
    average.add_argument("files", nargs="+", metavar="FILE", help=_COMPUTED)
    average.add_argument("--output", metavar="FILE", required=True, help="mixture file to write")

    text = "write a mixture in another tool's format, and explain its numbers on stderr"
    example = "mixture export mixture.json --format megatron --output blend.txt"
    export = _command(actions, "export", _export, text, example)
    export.add_argument("file", metavar="FILE", help="mixture file")
    export.add_argument("--format", choices=FORMATS, required=True, help="format to write")
    export.add_argument("--output", metavar="FILE", help="file to write (default: stdout)")

    text = "make a mixture file from another tool's weights"
    example = "mixture import blend.txt --format megatron --output mixture.json"
    take = _command(actions, "import", _import, text, example)
    take.add_argument("file", metavar="FILE", help="file of the other tool")
    take.add_argument("--format", choices=FORMATS, required=True, help="format of FILE")
    take.add_argument("--output", metavar="FILE", required=True, help="mixture file to write")


def _command(
    parsers: Parsers, name: str, command: Command | None, text: str, example: str
) -> argparse.ArgumentParser:
    """Add a parser for a command, with its help and an example that works."""
    parser: argparse.ArgumentParser = parsers.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=_example(example),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=command)
    return parser


def _example(arguments: str) -> str:
    return f"example:\n  nemo-chameleon {arguments}"


def _prepare(arguments: argparse.Namespace) -> None:
    from nemo_chameleon.data.readers import read_jsonl
    from nemo_chameleon.data.tokenize import write_dataset
    from nemo_chameleon.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(arguments.tokenizer)
    documents = read_jsonl(arguments.files, arguments.key)
    tokens = write_dataset(documents, tokenizer, arguments.output)
    print(f"{arguments.output}: {tokens:,} tokens")


def _index(arguments: argparse.Namespace) -> None:
    from nemo_chameleon.config import load_sft_config
    from nemo_chameleon.config.validation import check_mixture
    from nemo_chameleon.data.kinds import kind_of

    config = load_sft_config(arguments.config, arguments.overrides)
    check_mixture(config)
    data, length, evaluated = config.data, config.model.seq_length, bool(config.train.eval_iters)
    domains = kind_of(data).open_domains(data, length)
    kind_of(data).require_samples(data, domains, length, "model.", evaluated)
    header = ["domain", "examples", "tokens", "answer tokens", "samples per pass"]
    rows = [
        [
            name,
            f"{domain.documents:,}",
            f"{domain.tokens:,}",
            f"{domain.tokens_in('tokens'):,}",
            f"{domain.pass_tokens(length) // length:,}",
        ]
        for name, domain in domains.items()
    ]
    print(table(header, rows))


def _import_hf(arguments: argparse.Namespace) -> None:
    from nemo_chameleon.models.import_hf import import_huggingface

    print(import_huggingface(arguments.folder, arguments.output).summary())


def _check(arguments: argparse.Namespace) -> None:
    from nemo_chameleon import provider
    from nemo_chameleon.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    processes = arguments.processes
    prepared = provider.inspect(config, processes, arguments.proxy_processes or processes)
    tokens = sum(domain.tokens for domain in prepared.domains.values())
    count = len(prepared.domains)
    print(f"{count} domains with {tokens:,} tokens: valid for {processes} processes")
    if prepared.stored is None and prepared.plan is not None:
        print(f"the mixture does not exist yet: {prepared.plan.cost(count)}")


def _report(arguments: argparse.Namespace) -> None:
    print(compare([read_result(folder) for folder in arguments.runs]))


def _doctor(_: argparse.Namespace) -> None:
    from nemo_chameleon.launch import doctor

    print(doctor.table(doctor.examine()))


def _show(arguments: argparse.Namespace) -> None:
    print(show_mixture(Mixture.load(arguments.file)))


def _diff(arguments: argparse.Namespace) -> None:
    print(diff_mixtures(*map(Mixture.load, arguments.files)))


def _validate(arguments: argparse.Namespace) -> None:
    faults = []
    for file in arguments.files:
        try:
            print(f"{file}: {len(Mixture.load(file).weights)} domains, valid")
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError("\nerror: ".join(faults))


def _add(arguments: argparse.Namespace) -> None:
    from nemo_chameleon.distributed.processes import process_group
    from nemo_chameleon.provider.new_domains import embed_new
    from nemo_chameleon.utils.ranks import is_first_rank

    pairs = [domain.partition("=") for domain in arguments.domains]
    for (name, _, path), given in zip(pairs, arguments.domains, strict=True):
        if not name or not path:
            raise UserError(f"{given!r} is not of the form NAME=PATH")
    if arguments.micro_batch_size is not None and arguments.micro_batch_size < 1:
        raise UserError("--micro-batch-size must be at least 1")
    paths = {name: path for name, _, path in pairs}
    if len(paths) < len(pairs):
        names = [name for name, _, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"domain {twice!r} is given twice")
    before = ComputedMixture.load(arguments.file, CAVEAT_KEYS)
    with process_group():
        embedded = embed_new(
            before, paths, arguments.proxy, arguments.micro_batch_size, arguments.tokenizer
        )
        if is_first_rank():
            _change(arguments, before, before.with_domains(*embedded))


def _remove(arguments: argparse.Namespace) -> None:
    before = ComputedMixture.load(arguments.file, CAVEAT_KEYS)
    _change(arguments, before, before.without(arguments.domains))


def _rescore(arguments: argparse.Namespace) -> None:
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
    parts = [ComputedMixture.load(file, CAVEAT_KEYS) for file in arguments.files]
    _change(arguments, parts[0], averaged(parts))


def _change(arguments: argparse.Namespace, before: ComputedMixture, after: ComputedMixture) -> None:
    after.save(arguments.output or arguments.file)
    print(diff_mixtures(before.mixture, after.mixture))
    for caveat in after.mixture.method["caveats"]:
        print(f"note: {caveat}")


def _export(arguments: argparse.Namespace) -> None:
    text = export_mixture(Mixture.load(arguments.file), arguments.format)
    print(f"{arguments.format}: {FORMATS[arguments.format].meaning}", file=sys.stderr)
    if not arguments.output:
        print(text, end="")
        return
    try:
        write_atomically(Path(arguments.output), text)
    except OSError as error:
        raise UserError(f"cannot write {arguments.output}: {error}") from error


def _import(arguments: argparse.Namespace) -> None:
    try:
        text = Path(arguments.file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {arguments.file}: {error}") from error
    mixture = import_mixture(text, arguments.format, arguments.file)
    mixture.save(arguments.output)
    print(show_mixture(mixture))
