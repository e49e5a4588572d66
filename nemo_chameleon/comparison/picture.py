"""A picture of a comparison: losses on the domains against losses on sets nobody draws from."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nemo_chameleon.comparison.paired import Difference
from nemo_chameleon.comparison.report import Comparison
from nemo_chameleon.utils.picture import can_draw, svg_picture

_MARKERS = "osD^vP*X<>hp"


@dataclass(frozen=True)
class Point:
    """A mixture in the picture.

    Attributes:
        label: its name.
        domains: the difference in the mean loss on the domains, which the horizontal axis shows.
        others: that in the median loss on the other sets, which the vertical axis shows.
        ours: whether the point is drawn in the colour of this package's mixtures.
    """

    label: str
    domains: Difference
    others: Difference
    ours: bool


def points(comparison: Comparison) -> list[Point]:
    """Return the points of a comparison.

    Args:
        comparison: the results.

    Returns:
        A point for each mixture except the baseline; none where no other sets were evaluated.
    """
    if not comparison.sets("validation"):
        return []
    return [
        Point(
            name,
            comparison.summary(name, "domains"),
            comparison.summary(name, "validation", np.median),
            name == "chameleon",
        )
        for name in comparison.others
    ]


def draw(shown: Sequence[Point], path: Path, title: str = "") -> bool:
    """Draw points with their intervals as an SVG file, with their names beside the picture.

    Args:
        shown: the points.
        path: of the file.
        title: above the picture.

    Returns:
        Whether it was drawn: not without points, nor without matplotlib.
    """
    if not shown or not can_draw():
        return False
    with svg_picture(path) as figure:
        axes = figure.add_subplot()
        axes.axhline(0, color="0.75", linewidth=1)
        axes.axvline(0, color="0.75", linewidth=1)
        axes.plot(0, 0, "+", color="0.3", markersize=9)
        colors = itertools.cycle(("tab:blue", "tab:orange", "tab:purple", "tab:brown", "tab:gray"))
        for marker, point in zip(itertools.cycle(_MARKERS), shown, strict=False):
            axes.errorbar(
                point.domains.mean,
                point.others.mean,
                xerr=_bar(point.domains),
                yerr=_bar(point.others),
                fmt=marker,
                color="tab:green" if point.ours else next(colors),
                markersize=7,
                elinewidth=1,
                capsize=2,
                label=f"{point.label}{'' if point.domains.seeds > 1 else ' (one seed)'}",
            )
        axes.set_xlim(*_limits([point.domains for point in shown]))
        axes.set_ylim(*_limits([point.others for point in shown]))
        axes.set_xlabel("loss on the domains that are mixed, minus the baseline's, nats per token")
        axes.set_ylabel("median loss on unseen sets, minus the baseline's")
        axes.set_title(title)
        axes.annotate("better on both", (0.02, 0.03), xycoords="axes fraction", color="0.4")
        figure.legend(loc="outside right upper", frameon=False)
    return True


def _limits(found: Sequence[Difference]) -> tuple[float, float]:
    """Return the ends of an axis, which no wide interval of two seeds takes for itself."""
    farthest = max(abs(one.mean) for one in found) or 0.01
    reaches = [min(_bar(one) or 0.0, 2 * farthest) for one in found]
    low = min(0.0, *(one.mean - reach for one, reach in zip(found, reaches, strict=True)))
    high = max(0.0, *(one.mean + reach for one, reach in zip(found, reaches, strict=True)))
    room = 0.1 * (high - low)
    return low - room, high + room


def _bar(found: Difference) -> float | None:
    return found.half_width if math.isfinite(found.half_width) else None
