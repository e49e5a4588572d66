"""A picture of a plan: the share of each domain in the samples, from the run's start to its end."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_chameleon.utils.errors import UserError, reason_of
from nemo_chameleon.utils.picture import svg_picture
from nemo_chameleon.utils.tables import amount, printable

_LARGEST = 12
"""So many domains have a colour of their own."""
_OTHERS = "others"


def shares_over_run(found: Mapping[str, Any]) -> tuple[list[int], dict[str, list[float]]]:
    """Return what the picture shows.

    Args:
        found: what `provider.outlook` returned.

    Returns:
        The sample at which each stage begins, and the end of the last one; and by domain, the one
        with most samples first, its share of each stage. The smallest domains are one, "others".
    """
    stages, drawn = found["stages"], found["domains"]
    names = sorted((name for name in drawn if drawn[name]["samples"]), key=_samples(drawn))
    largest = names if len(names) <= _LARGEST + 1 else names[:_LARGEST]
    shares = {
        name: [s["domains"].get(name, {}).get("samples", 0) / s["samples"] for s in stages]
        for name in largest
    }
    if rest := names[len(largest) :]:
        shares[f"{len(rest):,} {_OTHERS}"] = [
            max(0.0, 1 - sum(shares[name][at] for name in largest)) for at in range(len(stages))
        ]
    return [0, *(stage["end"] for stage in stages)], shares


def _samples(drawn: Mapping[str, Mapping[str, Any]]) -> Any:
    return lambda name: (-drawn[name]["samples"], name)


def draw_shares(found: Mapping[str, Any], path: str) -> None:
    """Draw the shares as an SVG file: areas one above the other, with the names beside them.

    Args:
        found: what `provider.outlook` returned.
        path: of the file.

    Raises:
        UserError: matplotlib is not installed, or the file cannot be written.
    """
    edges, shares = shares_over_run(found)
    length = found["seq_length"]
    try:
        with svg_picture(Path(path)) as figure:
            from matplotlib import colormaps

            axes = figure.add_subplot()
            below = [0.0] * (len(edges) - 1)
            colors = colormaps["tab20"]
            for at, (name, heights) in enumerate(shares.items()):
                above = [low + height for low, height in zip(below, heights, strict=True)]
                axes.stairs(
                    above,
                    edges,
                    baseline=below,
                    fill=True,
                    color="0.8" if at == _LARGEST else colors(at),
                    label=_plain(name),
                )
                below = above
            for edge in edges[1:-1]:
                axes.axvline(edge, color="0.2", linewidth=1, linestyle=":")
            axes.set_xlim(0, edges[-1])
            axes.set_ylim(0, 1)
            axes.xaxis.set_major_formatter(lambda sample, _: amount(sample * length))
            axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
            axes.set_xlabel("tokens drawn")
            axes.set_ylabel("share of the samples")
            missing = any(not stage["computed"] for stage in found["stages"])
            axes.set_title(
                "weights that are not computed yet are shown as uniform" if missing else ""
            )
            figure.legend(loc="outside right upper", frameon=False, reverse=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason_of(error)}") from error


def _plain(name: str) -> str:
    """Return a name of which matplotlib takes nothing for a formula or a hidden label."""
    return " " * name.startswith("_") + printable(name, kept="").replace("$", r"\$")
