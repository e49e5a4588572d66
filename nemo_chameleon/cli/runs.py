"""The commands around runs: check, compare, report and doctor."""

import argparse

from nemo_chameleon.cli.parsing import Parsers, add_command, add_configuration, at_least_one, show
from nemo_chameleon.train.report import compare, read_result


def add_check(commands: Parsers) -> None:
    """Add check.

    Args:
        commands: the parsers of all commands.
    """
    text = "check a configuration and its data before its jobs are submitted"
    example = "check --config mine.yaml --processes 32"
    check = add_command(commands, "check", _check, text, example)
    add_configuration(check)
    text = "processes that train the base model (default: %(default)s)"
    check.add_argument("--processes", type=int, default=1, metavar="N", help=text)
    text = "processes that train the proxy (default: as many as --processes)"
    check.add_argument("--proxy-processes", type=int, metavar="N", help=text)


def add_report_and_doctor(commands: Parsers) -> None:
    """Add compare, report and doctor.

    Args:
        commands: the parsers of all commands.
    """
    text = "compare mixtures by the models that train on them, several seeds of each"
    example = "compare --config mine.yaml compare.mixtures=[uniform,chameleon] compare.seeds=[1,2]"
    several = add_command(commands, "compare", _compare, text, example)
    add_configuration(several)

    text = "show what finished runs drew from each domain, and their validation losses"
    example = "report runs/mine/uniform runs/mine/chameleon"
    report = add_command(commands, "report", _report, text, example)
    report.add_argument("runs", nargs="+", metavar="FOLDER", help="folder of a finished run")

    add_command(
        commands, "doctor", _doctor, "show what is installed and what works with it", "doctor"
    )


def _check(arguments: argparse.Namespace) -> None:
    from nemo_chameleon import provider
    from nemo_chameleon.config import load_config

    at_least_one("--processes", arguments.processes)
    at_least_one("--proxy-processes", arguments.proxy_processes)
    config = load_config(arguments.config, arguments.overrides)
    processes = arguments.processes
    prepared = provider.inspect(config, processes, arguments.proxy_processes or processes)
    tokens = sum(domain.tokens for domain in prepared.domains.values())
    count = len(prepared.domains)
    show(f"{count} domains with {tokens:,} tokens: valid for {processes} processes")
    if prepared.stored is None and prepared.plan is not None:
        show(f"the mixture does not exist yet: {prepared.plan.cost(count)}")


def _compare(arguments: argparse.Namespace) -> None:
    from nemo_chameleon.comparison.run import compare as compare_mixtures
    from nemo_chameleon.config import load_config

    compare_mixtures(load_config(arguments.config, arguments.overrides))


def _report(arguments: argparse.Namespace) -> None:
    show(compare([read_result(folder) for folder in arguments.runs]))


def _doctor(_: argparse.Namespace) -> None:
    from nemo_chameleon.launch import doctor

    show(doctor.table(doctor.examine()))
