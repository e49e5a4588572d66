"""`nemo-chameleon`: what a person does around a run, from a shell.

prepare   text to Megatron datasets
report    a table of one finished run, or of several side by side
"""

import argparse

from nemo_chameleon.console import program


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
