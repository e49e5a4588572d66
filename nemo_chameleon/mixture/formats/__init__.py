"""Mixtures in the file formats of other tools: export and import.

A weight of a mixture is a domain's share of the training samples and, because all samples have the
same length, of the tokens. The numbers of other tools may mean something else; each format says
what its numbers mean.

text.py         parses JSON, YAML and CSV, and says where a text is wrong
blend.py        what is read from a format, and the entries that are written
shapes.py       the shapes in which tools write datasets with their weights
megatron.py     Megatron-LM's arguments, for all splits and per split
nemo.py         NeMo's paths and data_prefix
bridge.py       Megatron-Bridge's dataset.blend
huggingface.py  probabilities of datasets.interleave_datasets
tables.py       CSV: a row per domain, and Olmix's ratios.csv with a column per domain
weights.py      JSON: weights by domain name
"""

from collections.abc import Mapping

from nemo_chameleon.mixture.formats.blend import MixtureFormat, total_of
from nemo_chameleon.mixture.formats.bridge import BRIDGE
from nemo_chameleon.mixture.formats.huggingface import HF
from nemo_chameleon.mixture.formats.megatron import MEGATRON, MEGATRON_PER_SPLIT
from nemo_chameleon.mixture.formats.nemo import NEMO
from nemo_chameleon.mixture.formats.tables import CSV, RATIOS
from nemo_chameleon.mixture.formats.weights import JSON
from nemo_chameleon.mixture.mixture import SUM_TOLERANCE, Mixture
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.logging import package_logger
from nemo_chameleon.utils.names import require_unicode

logger = package_logger(__package__)

FORMATS: Mapping[str, MixtureFormat] = {
    "megatron": MEGATRON,
    "megatron-per-split": MEGATRON_PER_SPLIT,
    "nemo": NEMO,
    "bridge": BRIDGE,
    "hf": HF,
    "csv": CSV,
    "ratios": RATIOS,
    "json": JSON,
}
"""The formats of `export_mixture` and `import_mixture`, by name."""


def export_mixture(mixture: Mixture, form: str) -> str:
    """Write a mixture as text in the format of another tool.

    Args:
        mixture: the mixture.
        form: one of `FORMATS`.

    Returns:
        The text of the file.

    Raises:
        UserError: the mixture lacks facts about the domains that the format needs.
    """
    return FORMATS[form].write(mixture)


def import_mixture(text: str, form: str, source: str = "text") -> Mixture:
    """Read a mixture from text in the format of another tool.

    If the format has no names of domains, a domain is named by the end of its path. What is left
    out of the mixture, and what is added up, is logged as a warning.

    Args:
        text: of the file.
        form: one of `FORMATS`.
        source: the name of the text in errors and warnings.

    Returns:
        The mixture, named "static".

    Raises:
        UserError: the text does not have this format, or its weights are not positive and finite.
    """
    try:
        blend = FORMATS[form].read(text.removeprefix("\ufeff"))
        weights = blend.weights
        if abs(total_of(weights) - 1.0) > SUM_TOLERANCE:
            weights = Mixture.static(weights).weights
        require_unicode([list(weights), blend.domains])
        mixture = Mixture(
            weights,
            domains=blend.domains,
            method={"name": "static"},
        )
    except UserError as error:
        reason = " ".join(str(error).splitlines())  # a name in it may have line breaks
        raise UserError(f"{source}, read as {form}: {reason}") from error
    except RecursionError as error:
        raise UserError(f"{source}, read as {form}: it is nested too deeply") from error
    for note in blend.notes:
        logger.warning("%s: %s", source, note)
    return mixture
