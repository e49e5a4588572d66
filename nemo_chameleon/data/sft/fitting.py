"""Whether examples fit into samples, before anything is trained."""

from collections.abc import Mapping

import numpy as np

from nemo_chameleon.config.schema import DataConfig
from nemo_chameleon.data.domain import Domain
from nemo_chameleon.data.sft.domain import SFTDomain, open_sft_validation
from nemo_chameleon.data.sft.samples import packs_of
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.logging import package_logger

logger = package_logger(__package__)
_SHOWN = 5  # examples that are too long, in a message


def require_fitting(
    data: DataConfig,
    domains: Mapping[str, Domain],
    seq_length: int,
    prefix: str,
    evaluated: bool,
) -> None:
    """Make the samples of training and validation, and say what does not fit into one.

    Args:
        data: the configuration.
        domains: opened.
        seq_length: tokens of a sample.
        prefix: of `seq_length` in the configuration, for errors.
        evaluated: whether validation splits are used.

    Raises:
        UserError: examples that are too long, and that is refused; or nothing left to train or to
            evaluate on.
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
            f"{where}: no example to evaluate on under data.split: give validation a larger share, "
            f"or set data.validation.{domain.name}.path, or no evaluation (train.eval_iters=0)"
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
            f"{what}; data.on_too_long=truncate leaves out their beginnings and keeps their last "
            "answers, skip leaves them out"
        )
    if not len(packs):
        raise UserError(f"{what}: not one is left")
    if len(shortened):
        pieces = packs.pieces[np.isin(packs.pieces[:, 0], shortened)]
        starts = domain.index.starts[pieces[:, 0]]
        before = domain.index.answers_before
        lost = int((before(starts + pieces[:, 1]) - before(starts)).sum())
        what += (
            f": {len(shortened):,} begin later, without {lost:,} tokens of answers before the last"
        )
    logger.warning("%s: %s are left out", what, f"{len(left_out):,}")
