"""`nemo-chameleon`: what a person does around a run, from a shell.

prepare   text to Megatron datasets
index     the JSONL of a finetuning configuration to tokens, before the run and as it would
mixture   show, compare and check mixture files; change computed ones; export and import
check     whether a configuration can run, before its jobs are submitted
report    a table of one finished run, or of several side by side
doctor    what is installed, what works with it, what to install for the rest
"""

import argparse
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from nemo_chameleon.method.weights import OBJECTIVES, PRESETS
from nemo_chameleon.mixture import Mixture
from nemo_chameleon.mixture.edit import ComputedMixture, averaged
from nemo_chameleon.mixture.formats import FORMATS, export_mixture, import_mixture
from nemo_chameleon.mixture.tables import diff_mixtures, show_mixture
from nemo_chameleon.train.report import compare, read_result
from nemo_chameleon.utils.console import program
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import write_atomically
from nemo_chameleon.utils.tables import table


@program
def main() -> None:
    """Run the command that the arguments name."""
    arguments = _parser().parse_args()
    arguments.command(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nemo-chameleon", description=__doc__.split("\n")[0])
    parser.add_argument("--version", action="version", version=version("nemo_chameleon"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    prepare = commands.add_parser("prepare", help="tokenise JSONL files into a Megatron dataset")
    prepare.add_argument("files", nargs="+", metavar="FILE", help="JSONL, one document a line")
    prepare.add_argument("--tokenizer", required=True, help="a tokenizer.json")
    prepare.add_argument("--output", required=True, metavar="PREFIX", help="of the .bin and .idx")
    prepare.add_argument("--key", default="text", help="of the document in a line (text)")
    prepare.set_defaults(command=_prepare)

    index = commands.add_parser("index", help="tokenise a finetuning run's JSONL before the run")
    index.add_argument("--config", metavar="FILE", help="as the recipe's")
    index.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="wins over the file")
    index.set_defaults(command=_index)

    check = commands.add_parser(
        "check", help="a configuration and its data, before it is submitted"
    )
    check.add_argument("--config", metavar="FILE", help="as the recipe's")
    check.add_argument("--processes", type=int, default=1, help="that train the base model (1)")
    check.add_argument("--proxy-processes", type=int, help="that train the proxy (as many)")
    check.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="wins over the file")
    check.set_defaults(command=_check)

    mixture = commands.add_parser("mixture", help="look at, change, export mixture files")
    _add_mixture_actions(mixture.add_subparsers(required=True, metavar="ACTION"))

    report = commands.add_parser("report", help="what runs drew from each domain and got for it")
    report.add_argument("runs", nargs="+", metavar="FOLDER", help="of a finished run")
    report.set_defaults(command=_report)

    doctor = commands.add_parser("doctor", help="what is installed, and what works with it")
    doctor.set_defaults(command=_doctor)
    return parser


def _add_mixture_actions(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    show = actions.add_parser("show", help="weights by domain, and where they came from")
    show.add_argument("file", metavar="FILE")
    show.set_defaults(command=_show)
    diff = actions.add_parser("diff", help="what moved between two mixtures")
    diff.add_argument("files", nargs=2, metavar="FILE")
    diff.set_defaults(command=_diff)
    validate = actions.add_parser("validate", help="exit code 2 and a line for each bad file")
    validate.add_argument("files", nargs="+", metavar="FILE")
    validate.set_defaults(command=_validate)

    def changing(name: str, text: str, command: Callable[..., None]) -> argparse.ArgumentParser:
        parser = actions.add_parser(name, help=text)
        parser.add_argument("file", metavar="FILE", help="a computed mixture, embeddings beside it")
        parser.add_argument("--output", metavar="FILE", help="in place of changing it where it is")
        parser.set_defaults(command=command)
        return parser

    add = changing("add", "embed new domains with its proxy, weigh all anew", _add)
    add.add_argument("domains", nargs="+", metavar="NAME=PATH", help="as in the configuration")
    add.add_argument(
        "--proxy", action="append", default=[], metavar="FOLDER", help="where its checkpoint is now"
    )
    add.add_argument("--micro-batch-size", type=int, help="windows at once")
    remove = changing("remove", "take domains out, weigh the others anew", _remove)
    remove.add_argument("domains", nargs="+", metavar="NAME")
    rescore = changing("rescore", "weigh all anew under other settings", _rescore)
    rescore.add_argument("--objective", choices=OBJECTIVES)
    rescore.add_argument("--preset", choices=PRESETS)
    for setting in ("ridge", "exponent", "min-effective"):
        rescore.add_argument(f"--{setting}", type=float)

    average = actions.add_parser("average", help="one mixture through several proxies")
    average.add_argument("files", nargs="+", metavar="FILE", help="of the same domains and windows")
    average.add_argument("--output", metavar="FILE", required=True)
    average.set_defaults(command=_average)

    for name, text, command in (
        ("export", "for another tool; what its numbers mean goes to stderr", _export),
        ("import", "another tool's weights as a mixture file", _import),
    ):
        parser = actions.add_parser(name, help=text)
        parser.add_argument("file", metavar="FILE")
        parser.add_argument("--format", choices=FORMATS, required=True)
        parser.add_argument("--output", metavar="FILE", required=name == "import")
        parser.set_defaults(command=command)


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
    from nemo_chameleon.data.kind import kind_of

    config = load_sft_config(arguments.config, arguments.overrides)
    check_mixture(config)
    data, length, evaluated = config.data, config.model.seq_length, bool(config.train.eval_iters)
    domains = kind_of(data).open_domains(data, length)
    kind_of(data).require_samples(data, domains, length, "model.", evaluated)
    header = ["domain", "examples", "tokens", "answer tokens", "samples a pass"]
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


def _check(arguments: argparse.Namespace) -> None:
    from nemo_chameleon import provider
    from nemo_chameleon.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    processes = arguments.processes
    prepared = provider.inspect(config, processes, arguments.proxy_processes or processes)
    tokens = sum(domain.tokens for domain in prepared.domains.values())
    count = len(prepared.domains)
    print(f"{count} domains with {tokens:,} tokens: valid for {processes} processes")


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
            raise UserError(f"{given!r} is not NAME=PATH")
    if arguments.micro_batch_size is not None and arguments.micro_batch_size < 1:
        raise UserError("--micro-batch-size must be at least 1")
    paths = {name: path for name, _, path in pairs}
    if len(paths) < len(pairs):
        raise UserError("a domain is named twice")
    before = ComputedMixture.load(arguments.file)
    with process_group():
        embedded = embed_new(before, paths, arguments.proxy, arguments.micro_batch_size)
        if is_first_rank():
            _change(arguments, before, before.with_domains(*embedded))


def _remove(arguments: argparse.Namespace) -> None:
    before = ComputedMixture.load(arguments.file)
    _change(arguments, before, before.without(arguments.domains))


def _rescore(arguments: argparse.Namespace) -> None:
    before = ComputedMixture.load(arguments.file)
    after = before.rescored(
        arguments.objective,
        preset=arguments.preset,
        ridge=arguments.ridge,
        exponent=arguments.exponent,
        min_effective=arguments.min_effective,
    )
    _change(arguments, before, after)


def _average(arguments: argparse.Namespace) -> None:
    parts = [ComputedMixture.load(file) for file in arguments.files]
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
