"""The mixture that a host's run saves with its checkpoints.

A run that continues from checkpoints has to draw by the mixture that it has drawn by so far, unless
on_mixture_change=accept. That holds for hosts that resume by rules of their own, too. Where a run
follows a plan, plans.py saves it beside the mixture and decides how it goes on.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path

from nemo_chameleon.config.data import ON_MIXTURE_CHANGE
from nemo_chameleon.distributed.collectives import on_first_rank
from nemo_chameleon.mixture import Mixture
from nemo_chameleon.mixture.tables import diff_mixtures
from nemo_chameleon.models.tracker import tracked
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.ranks import is_first_rank

StrPath = str | os.PathLike[str]
Folders = Sequence[StrPath | None]
FILE = "mixture.json"
PLAN_FILE = "plan.json"
"""The plan of a run that follows one; it is beside the mixture file."""


def saved_in(*folders: StrPath | None) -> Path | None:
    """Find the mixture file that a run saved with its checkpoints.

    Args:
        folders: folders of checkpoints; None is skipped.

    Returns:
        The first file that exists, or None.
    """
    files = [Path(folder) / FILE for folder in folders if folder is not None]
    return next((file for file in files if file.is_file()), None)


def trained_in(*folders: StrPath | None) -> Path | None:
    """Find a folder with checkpoints of a run that began with a mixture.

    Args:
        folders: folders of checkpoints; None is skipped.

    Returns:
        The first such folder, or None.
    """
    own = (Path(folder) for folder in folders if folder is not None)
    return next((own for own in own if (own / FILE).is_file() and _has_checkpoints(own)), None)


def require_choice(on_change: str) -> None:
    """Check a value of on_mixture_change.

    Args:
        on_change: the value.

    Raises:
        UserError: it is not one that there is.
    """
    if on_change not in ON_MIXTURE_CHANGE:
        choices = ", ".join(ON_MIXTURE_CHANGE)
        raise UserError(f"on_mixture_change={on_change!r} is not one of {choices}")


def begun_in(save: StrPath | None, load: StrPath | None, on_change: str) -> Path | None:
    """Find the mixture file that a run has to keep to, because it continues from checkpoints.

    Args:
        save: the folder that the run's checkpoints are saved in; None where the host saves none.
        load: the folder of checkpoints that the run continues from; None where it loads none.
        on_change: "refuse", "continue" or "accept", for a mixture other than the saved one.

    Returns:
        The file; None where the run may draw by any mixture.

    Raises:
        UserError: `on_change` is none of these.
    """
    require_choice(on_change)
    file = saved_in(save, load)
    # A run that stopped before its first checkpoint may start again with any mixture.
    trained = file is not None and _has_checkpoints(file.parent)
    return file if trained and on_change != "accept" else None


def keep_mixture(
    mixture: Mixture, save: StrPath | None, load: StrPath | None, on_change: str
) -> None:
    """Refuse a mixture other than the one that the run has drawn by, or else save it.

    Once the ranks have met, every rank must call it; the first one saves the file.

    Args:
        mixture: the mixture that is asked for, with its domains in the order of the host's
            datasets.
        save: the folder that the run's checkpoints are saved in; None where the host saves none.
        load: the folder of checkpoints that the run continues from; None where it loads none.
        on_change: "refuse", "continue" or "accept", for a mixture other than the saved one. Only
            a run that follows a plan can continue with another one.

    Raises:
        UserError: the mixture is another one; the message shows the differences.
    """

    def compare() -> None:
        file = begun_in(save, load, on_change)
        if file is not None and (plan := file.with_name(PLAN_FILE)).is_file():
            raise UserError(
                f"the run has followed {plan} so far, and no plan is asked for: set "
                "data.order=streams and its stages in mixture_config, or set "
                "on_mixture_change=accept"
            )
        if file is not None and not _same(saved := Mixture.load(file), mixture):
            instead = "on_mixture_change=accept"
            if on_change == "continue":
                instead += (
                    ", because only a run that began with data.order=streams or data.stages can "
                    "continue by another mixture"
                )
            raise UserError(
                f"the run has drawn samples by {file} so far, and another mixture is asked for: "
                f"ask for that one, or set {instead}\n" + diff_mixtures(saved, mixture)
            )
        if save is not None and is_first_rank():
            mixture.save(Path(save) / FILE)
            (Path(save) / PLAN_FILE).unlink(missing_ok=True)

    on_first_rank(compare)


def refuse_unasked(save: StrPath | None, load: StrPath | None, on_change: str) -> None:
    """Refuse a run that asks for no mixture, if it continues one that began with a mixture.

    Args:
        save: the folder that the run's checkpoints are saved in; None where the host saves none.
        load: the folder of checkpoints that the run continues from; None where it loads none.
        on_change: "refuse", "continue" or "accept".

    Raises:
        UserError: the run began with a mixture.
    """
    file = begun_in(save, load, on_change)
    if file is not None:
        raise UserError(
            f"the run has drawn samples by {file} so far, and no mixture is asked for: ask for "
            f"mixture={file}, or set on_mixture_change=accept"
        )


def _same(saved: Mixture, asked: Mixture) -> bool:
    """Return whether two mixtures give the same samples in the same order."""
    pairs = zip(saved.weights.items(), asked.weights.items(), strict=False)
    if saved.method.get("drawn") != asked.method.get("drawn"):
        return False
    return len(saved.weights) == len(asked.weights) and all(
        before[0] == now[0] and math.isclose(before[1], now[1], rel_tol=1e-9)
        for before, now in pairs
    )


def _has_checkpoints(folder: Path) -> bool:
    """Return whether a folder has checkpoints of Megatron-LM or Bridge, or of NeMo."""
    return tracked(folder)[0] is not None or any(folder.glob("*/weights"))
