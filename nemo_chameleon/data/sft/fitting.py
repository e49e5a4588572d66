"""Checks before training that examples fit into samples.

Examples that do not fit are refused, left out or shortened, as data.on_too_long says. A warning
reports those that are left out or shortened.
"""

from collections.abc import Mapping

import numpy as np

from nemo_chameleon.config.data import DataConfig
from nemo_chameleon.data.domain import Domain
from nemo_chameleon.data.sft.domain import SFTDomain, open_sft_validation
from nemo_chameleon.data.sft.samples import packs_of
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.logging import package_logger

logger = package_logger(__package__)
_SHOWN = 5  # too long examples that a message lists


def require_fitting(
    data: DataConfig,
    domains: Mapping[str, Domain],
    seq_length: int,
    prefix: str,
    evaluated: bool,
) -> None:
    """Make the samples for training and validation, and report examples that do not fit.

    Args:
        data: the data configuration.
        domains: the opened domains by name.
        seq_length: tokens per sample.
        prefix: prefix of the key `seq_length`, for instance "proxy.model."; errors name it.
        evaluated: whether the run evaluates on validation splits.

    Raises:
        UserError: examples are too long and data.on_too_long=refuse, or no example is left to train
            or to evaluate on.
    """
    own = {name: domain for name, domain in domains.items() if isinstance(domain, SFTDomain)}
    for name, domain in own.items():
        part = range(domain.documents)
        _require_samples(f"data.domains.{name}", domain, part, seq_length, prefix)
    if not evaluated:
        return
    held_out = open_sft_validation(data, domains, seq_length)
    for name, domain in held_out.items():
        part = range(domain.documents)
        _require_samples(f"data.validation.{name}", domain, part, seq_length, prefix)
    for name, domain in own.items():
        if name not in held_out:
            part = range(domain.documents, domain.documents + domain.validation_documents)
            _require_samples(f"data.domains.{name}", domain, part, seq_length, prefix)


def _require_samples(
    where: str, domain: SFTDomain, part: range, seq_length: int, prefix: str
) -> None:
    if not len(part):
        raise UserError(
            f"{where}: data.split leaves no example to evaluate on: give validation a larger "
            f"share, set data.validation.{domain.name}.path, or set "
            f"{prefix.removesuffix('model.')}train.eval_iters=0"
        )
    packs, found = packs_of(domain.index, part, seq_length, domain.packing)
    too_long, shortened, left_out = (found[k] for k in ("too long", "shortened", "left out"))
    if not len(too_long):
        return
    lines = "; ".join(domain.index.line(int(i)) for i in too_long[:_SHOWN])
    more = "; ..." if len(too_long) > _SHOWN else ""
    what = (
        f"{where}: {len(too_long):,} of {len(part):,} examples are longer than {prefix}"
        f"seq_length={seq_length} ({lines}{more})"
    )
    if domain.packing.on_too_long == "refuse":
        raise UserError(
            f"{what}; set data.on_too_long=truncate to cut off their beginnings and keep their "
            "last answers, or data.on_too_long=skip to leave them out"
        )
    if not len(packs):
        raise UserError(f"{what}: none of the examples fits; set a larger {prefix}seq_length")
    outcome = f"{len(left_out):,} are left out"
    if len(shortened):
        pieces = packs.pieces[np.isin(packs.pieces[:, 0], shortened)]
        starts = domain.index.starts[pieces[:, 0]]
        before = domain.index.answers_before
        lost = int((before(starts + pieces[:, 1]) - before(starts)).sum())
        outcome = (
            f"{len(shortened):,} lose their beginnings, with {lost:,} tokens of earlier answers; "
            f"{outcome}"
        )
    logger.warning("%s: %s", what, outcome)
