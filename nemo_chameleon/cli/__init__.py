"""The command `nemo-chameleon`: work around a run, from a shell.

prepare   tokenise text into Megatron datasets
index     tokenise the JSONL of a finetuning run before the run
sft       show examples of a finetuning run as the model will see them
import-hf convert a Hugging Face model into a checkpoint
mixture   compute, show, compare, check, change, export and import mixture files
plan      show, build and compare what a run will draw
check     check a configuration before its jobs are submitted
compare   compare mixtures by the models that train on them
report    compare finished runs in a table
doctor    show what is installed, and what works with it
"""

import argparse

from nemo_chameleon.cli.data import add_data_commands
from nemo_chameleon.cli.mixtures import add_mixture_commands
from nemo_chameleon.cli.parsing import epilog, parse
from nemo_chameleon.cli.plans import add_plan_commands
from nemo_chameleon.cli.runs import add_check, add_report_and_doctor
from nemo_chameleon.cli.sft import add_sft_commands
from nemo_chameleon.utils.console import program
from nemo_chameleon.utils.provenance import package_version


@program
def main() -> None:
    """Run the command that the arguments name."""
    arguments = parse(_parser())
    arguments.command(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nemo-chameleon",
        description="Prepare data, check configurations, and work with mixtures and runs.",
        epilog=epilog("mixture show mixture.json"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=package_version())
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    add_data_commands(commands)
    add_sft_commands(commands)
    add_check(commands)
    add_mixture_commands(commands)
    add_plan_commands(commands)
    add_report_and_doctor(commands)
    return parser
