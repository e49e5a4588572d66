"""`nemo-chameleon`: what a person does around a run, from a shell.

prepare   text to Megatron datasets
mixture   show, compare and check mixture files
report    a table of one finished run, or of several side by side
"""

import argparse

from nemo_chameleon.console import program
from nemo_chameleon.errors import UserError


@program
def main() -> None:
    """Run the command that the arguments name."""
    arguments = _parser().parse_args()
    arguments.command(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nemo-chameleon", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    prepare = commands.add_parser("prepare", help="tokenise JSONL files into a Megatron dataset")
    prepare.add_argument("files", nargs="+", metavar="FILE", help="JSONL, one document a line")
    prepare.add_argument("--tokenizer", required=True, help="a tokenizer.json")
    prepare.add_argument("--output", required=True, metavar="PREFIX", help="of the .bin and .idx")
    prepare.add_argument("--key", default="text", help="of the document in a line (text)")
    prepare.set_defaults(command=_prepare)

    mixture = commands.add_parser("mixture", help="show, compare and check mixture files")
    actions = mixture.add_subparsers(required=True, metavar="ACTION")
    show = actions.add_parser("show", help="weights by domain, and where they came from")
    show.add_argument("file", metavar="FILE")
    show.set_defaults(command=_show)
    diff = actions.add_parser("diff", help="what moved between two mixtures")
    diff.add_argument("files", nargs=2, metavar="FILE")
    diff.set_defaults(command=_diff)
    validate = actions.add_parser("validate", help="exit code 2 and a line for each bad file")
    validate.add_argument("files", nargs="+", metavar="FILE")
    validate.set_defaults(command=_validate)

    report = commands.add_parser("report", help="what runs drew from each domain and got for it")
    report.add_argument("runs", nargs="+", metavar="FOLDER", help="of a finished run")
    report.set_defaults(command=_report)
    return parser


def _prepare(arguments: argparse.Namespace) -> None:
    from nemo_chameleon.prepare import read_jsonl, write_dataset
    from nemo_chameleon.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(arguments.tokenizer)
    documents = read_jsonl(arguments.files, arguments.key)
    tokens = write_dataset(documents, tokenizer, arguments.output)
    print(f"{arguments.output}: {tokens:,} tokens")


def _report(arguments: argparse.Namespace) -> None:
    from nemo_chameleon.report import compare, read_result

    print(compare([read_result(folder) for folder in arguments.runs]))


def _show(arguments: argparse.Namespace) -> None:
    from nemo_chameleon.mixture import Mixture
    from nemo_chameleon.report import show_mixture

    print(show_mixture(Mixture.load(arguments.file)))


def _diff(arguments: argparse.Namespace) -> None:
    from nemo_chameleon.mixture import Mixture
    from nemo_chameleon.report import diff_mixtures

    print(diff_mixtures(*map(Mixture.load, arguments.files)))


def _validate(arguments: argparse.Namespace) -> None:
    from nemo_chameleon.mixture import Mixture

    faults = []
    for file in arguments.files:
        try:
            print(f"{file}: {len(Mixture.load(file).weights)} domains, valid")
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError("\nerror: ".join(faults))
