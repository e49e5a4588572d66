"""Show how much the weights depend on a small proxy's seed and layer, raw and normalised.

    python -m benchmarks.proxy_seeds CORPORA [--seeds 1 2 3 4 5 6]

It trains the proxies of SIZE=cpu of benchmarks/mixtures, a seed each, and embeds the eight domains
after every layer, for raw and for normalised token states, with windows within documents and across
them. It prints total variations and, as its last line, one JSON object.
"""

import argparse
import itertools
import json
import logging
from pathlib import Path

import numpy as np
from scipy.stats import t

from benchmarks.mixtures import data
from benchmarks.mixtures.measured import moved
from benchmarks.mixtures.size import Size, size_called
from nemo_chameleon import Mixture, provider
from nemo_chameleon.distributed.processes import process_group


def computed(size: Size, seed: int, samples: int, normalised: bool, across: bool) -> Mixture:
    """Return the mixture of one proxy, with the weights that every layer gives."""
    name = f"{'normalised' if normalised else 'raw'}-{'across' if across else 'within'}.json"
    file = size.folder / f"seed{seed}" / "seeds" / name
    own = [
        "chameleon.layer=all",
        f"chameleon.samples={samples}",
        f"chameleon.normalize_states={normalised}",
        f"chameleon.cross_documents={across}",
        f"chameleon.file={file}",
    ]
    return provider.resolve_mixture(size.configured(seed, "seeds", "chameleon", (), own))


def _half_widths(weights: np.ndarray) -> np.ndarray:
    """Return half of the 95 % intervals of mean weights over seeds, the first axis."""
    count = len(weights)
    return t.ppf(0.975, count - 1) * weights.std(axis=0, ddof=1) / np.sqrt(count)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpora", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5, 6])
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--size", default="cpu")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    size, figures = size_called(arguments.size), {}
    data.prepare(size, arguments.corpora)
    with process_group():
        for normalised, across in itertools.product((False, True), repeat=2):
            mixtures = [
                computed(size, seed, arguments.samples, normalised, across)
                for seed in arguments.seeds
            ]
            layers = list(mixtures[0].method["layers"])
            by_layer = np.array(
                [[list(m.method["layers"][n].values()) for n in layers] for m in mixtures]
            )
            way = f"{'normalised' if normalised else 'raw'}/{'across' if across else 'within'}"
            half = np.array([np.ptp(list(m.uncertainty.values()), axis=1) / 2 for m in mixtures])
            figures[way] = {
                "layers": layers,
                "weights": dict(zip(size.domains, by_layer.mean(0).T.tolist(), strict=True)),
                "half-widths over seeds": dict(
                    zip(size.domains, _half_widths(by_layer).T.tolist(), strict=True)
                ),
                "between seeds": [
                    float(np.mean([moved(a, b) for a, b in itertools.combinations(w, 2)]))
                    for w in by_layer.transpose(1, 0, 2)
                ],
                "between layers": [
                    float(np.mean([moved(w[i], w[i + 1]) for w in by_layer]))
                    for i in range(len(layers) - 1)
                ],
                "half-widths over windows": float(half.mean()),
            }
            print(way, json.dumps(figures[way], indent=1), flush=True)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
