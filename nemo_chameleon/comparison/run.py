"""A comparison from its configuration to its report."""

from pathlib import Path

from nemo_chameleon.comparison.picture import draw, points
from nemo_chameleon.comparison.report import Comparison
from nemo_chameleon.comparison.runs import candidates, results, train_missing
from nemo_chameleon.config.schema import Config
from nemo_chameleon.distributed.processes import process_group
from nemo_chameleon.provider.runs import COMPARED
from nemo_chameleon.utils.files import write_atomically
from nemo_chameleon.utils.logging import package_logger
from nemo_chameleon.utils.ranks import is_first_rank

logger = package_logger(__package__)


def compare(config: Config) -> None:
    """Train every mixture with every seed, and report the differences; every rank must call it.

    The report is logged, and written to compare/report.txt under `output` with a picture beside it.

    Args:
        config: the whole configuration.

    Raises:
        UserError: the comparison cannot start, or a run fails.
        StoppedError: it was asked to stop; the same command goes on.
    """
    with process_group():
        runs, domains = candidates(config)
    train_missing(config, domains, runs)
    if not is_first_rank():
        return
    wanted = config.compare
    comparison = Comparison(results(config, runs), wanted.difference, wanted.worst)
    text, folder = comparison.text(), Path(config.output) / COMPARED
    write_atomically(folder / "report.txt", text + "\n")
    logger.info("%s", text)
    if draw(points(comparison), folder / "report.svg"):
        logger.info("the picture is %s", folder / "report.svg")
