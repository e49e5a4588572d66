"""Draw the pictures of docs/results.md: changes in loss by method."""

import io
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmarks.mixtures.measured import Measured, interval
from nemo_chameleon.utils.files import write_atomically


def write(measured: Measured, path: Path) -> None:
    """Draw the change in loss on the domains against that on unseen domains, as SVG.

    Each method is one point. Bars are 95 % intervals over seeds, cut off at the edge of the
    picture. A hollow point is a method with one seed.
    """
    with mpl.rc_context({"svg.hashsalt": "results", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(7, 5), layout="constrained")
        axes = figure.add_subplot()
        axes.axhline(0, color="0.8", linewidth=1)
        axes.axvline(0, color="0.8", linewidth=1)
        bars: list[tuple[list[float], list[float], str]] = []
        for method in measured.methods:
            if method == "uniform":
                continue
            (x, x_half), (y, y_half) = (
                interval(measured.differences(method, part).mean(1)) for part in ("loss", "unseen")
            )
            ours = method.startswith("chameleon")
            color = "tab:green" if ours else "tab:gray"
            # One seed: a hollow point without bars.
            axes.plot(x, y, "o", color=color, fillstyle="full" if np.isfinite(x_half) else "none")
            bars += [([x - x_half, x + x_half], [y, y], color)]
            bars += [([x, x], [y - y_half, y + y_half], color)]
            label = method.removeprefix("chameleon:")
            axes.annotate(label, (x, y), xytext=(4, 4), textcoords="offset points", color=color)
        axes.margins(0.15)
        axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # the limits of the points alone
        for xs, ys, color in bars:
            if np.isfinite([*xs, *ys]).all():
                axes.plot(xs, ys, color=color, linewidth=0.8)
        axes.set_xlabel("loss on the domains, minus uniform's, in nats per token (left is better)")
        axes.set_ylabel("loss on unseen domains, minus uniform's (down is better)")
        axes.set_title(f"SIZE={measured.size.name}")
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
        write_atomically(path, drawn.getvalue())
