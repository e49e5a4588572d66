"""The stages of a run, as the configuration names them."""

import itertools
import re
from dataclasses import replace
from decimal import Decimal

from nemo_chameleon.config.schema import Config
from nemo_chameleon.utils.errors import UserError

MOST_BLENDED = 100
"""The most domains for which data.order=auto means Megatron's blend."""
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([KMBT]?)\s*(tokens|samples)")
_UNITS = {"": 0, "K": 3, "M": 6, "B": 9, "T": 12}


def in_streams(config: Config) -> bool:
    """Return whether data.order, or what auto stands for, is streams.

    Args:
        config: the whole configuration.

    Returns:
        Whether it is.
    """
    data = config.data
    if data.order != "auto":
        return data.order == "streams"
    return len(data.stages) > 1 or len(data.domains) > MOST_BLENDED


def configuration_of(config: Config, stage: int) -> Config:
    """Return a configuration whose data.mixture and bounds are those of one stage.

    Args:
        config: the whole configuration.
        stage: the position of the stage in data.stages; without stages, 0 is the whole run.

    Returns:
        A configuration without stages.
    """
    data = config.data
    if not data.stages:
        return config
    own = data.stages[stage]
    return replace(
        config,
        data=replace(
            data,
            stages=[],
            mixture=own.mixture or data.mixture,
            max_epochs=own.max_epochs or data.max_epochs,
            pin=own.pin or data.pin,
            floor=own.floor or data.floor,
        ),
    )


def stage_samples(
    config: Config,
    samples: int | None = None,
    seq_length: int | None = None,
    batch: int | None = None,
) -> list[int]:
    """Return the number of samples of each stage.

    Args:
        config: the whole configuration.
        samples: samples of the run; None for those of the configured run.
        seq_length: tokens of a sample; None for model.seq_length.
        batch: samples of a global batch, of which a stage has a whole number; None for
            train.global_batch_size.

    Returns:
        One positive number for each stage, which sum to the run's; without stages, the run's alone.

    Raises:
        UserError: a stage has no samples, or the last one does not end with the run.
    """
    total = config.train.samples if samples is None else samples
    length = config.model.seq_length if seq_length is None else seq_length
    batch = config.train.global_batch_size if batch is None else batch
    stages, ends = config.data.stages, [0]
    for at, stage in enumerate(stages):
        key, last = f"data.stages[{at}].until", at == len(stages) - 1
        if stage.until is None and not last:
            raise UserError(f"{key} is not set: set it to where the stage ends, as in 0.8")
        end = total if stage.until is None else _samples_until(stage.until, total, length, key)
        end = total if end >= total else round(end / batch) * batch
        if end <= ends[-1]:
            before = "the run begins" if at == 0 else f"data.stages[{at - 1}] ends"
            raise UserError(
                f"{key}={stage.until} is sample {end:,}, rounded to global batches of {batch:,}, "
                f"and {before} at sample {ends[-1]:,}: a stage must end after it begins"
            )
        if last and end < total:
            raise UserError(
                f"{key}={stage.until} is sample {end:,}, but the run has {total:,}: leave it out, "
                "because the last stage ends with the run"
            )
        ends.append(end)
    if not stages:
        return [total]
    return [end - start for start, end in itertools.pairwise(ends)]


def _samples_until(until: float | str, total: int, length: int, key: str) -> float:
    if isinstance(until, float | int):
        return until * total if until <= 1 else until
    if (match := _AMOUNT.fullmatch(until.strip())) is None:
        raise UserError(
            f"{key}={until!r} must be a share such as 0.8, a number of samples, or an amount such "
            "as '1.5T tokens' or '200M samples'"
        )
    amount = Decimal(match[1]) * Decimal(10) ** _UNITS[match[2]]
    return float(amount / length if match[3] == "tokens" else amount)
