"""Pictures of docs/results.md: what each method wins and loses."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmarks.mixtures.measured import Measured, interval


def write(measured: Measured, path: Path) -> None:
    """Change of the loss on the domains against that on unseen ones, a point a method, as SVG.

    Bars are 95 % intervals over seeds, left out where they are wider than the picture.
    """
    with mpl.rc_context({"svg.hashsalt": "results", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(7, 5), layout="constrained")
        axes = figure.add_subplot()
        axes.axhline(0, color="0.8", linewidth=1)
        axes.axvline(0, color="0.8", linewidth=1)
        for method in measured.methods:
            if method == "uniform":
                continue
            (x, x_half), (y, y_half) = (
                interval(measured.differences(method, part).mean(1)) for part in ("loss", "unseen")
            )
            ours = method.startswith("chameleon")
            half = [h if np.isfinite(h) and h < 0.2 else np.nan for h in (x_half, y_half)]
            color = "tab:green" if ours else "tab:gray"
            axes.errorbar(x, y, xerr=half[0], yerr=half[1], fmt="o", color=color, linewidth=0.8)
            label = method.removeprefix("chameleon:")
            axes.annotate(label, (x, y), xytext=(4, 4), textcoords="offset points", color=color)
        axes.set_xlabel("loss on the domains, nats less uniform's (left is better)")
        axes.set_ylabel("loss on unseen domains (down is better)")
        axes.set_title(f"SIZE={measured.size.name}")
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})
