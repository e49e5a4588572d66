"""Compare leverage scores by a direct k × k inverse with ours, and time ours for more domains.

    python benchmarks/leverage.py [--quick]

Both are timed on the same embeddings in the same run: the best of three times up to 3,000 domains,
one time above. Memory is the peak of numpy's allocations. The script prints a table and, as its
last line, one JSON object.
"""

import argparse
import json
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nemo_chameleon.method.leverage import leverage_scores

WIDTH = 768
RELATIVE_RIDGE = 0.3


def direct(x: np.ndarray) -> np.ndarray:
    """Compute scores by their definition: the kernel, its inverse, the diagonal of a product."""
    x = x.astype(np.float64)
    x -= x.mean(axis=0)
    kernel = x @ x.T
    k = len(kernel)
    ridge = RELATIVE_RIDGE * np.trace(kernel) / k
    return np.diagonal(kernel @ np.linalg.inv(kernel + k * ridge * np.eye(k))).copy()


def ours(x: np.ndarray) -> np.ndarray:
    """Compute scores with nemo_chameleon."""
    return leverage_scores(x, relative_ridge=RELATIVE_RIDGE)


def measure(
    scores: Callable[[np.ndarray], np.ndarray], x: np.ndarray, repeats: int
) -> tuple[np.ndarray, float, float]:
    """Return the scores, the best wall time in seconds and the peak of allocations in MiB."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = scores(x)
        times.append(time.perf_counter() - started)
    tracemalloc.start()
    scores(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return result, min(times), peak / 2**20


def embeddings(k: int, file: Path) -> np.ndarray:
    """Write random embeddings of k domains as float32 and map them into memory."""
    generator = np.random.default_rng(k)
    x = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(k, WIDTH))
    offset = generator.normal(size=WIDTH).astype(np.float32)
    for start in range(0, k, 10_000):
        block = x[start : start + 10_000]
        block[:] = generator.standard_normal(block.shape, dtype=np.float32) + offset
    return x


def main() -> None:
    """Measure, and print the table and the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="use small sizes; takes seconds")
    quick = parser.parse_args().quick
    both, alone = (
        ((7, 100, 1000), (5000,))
        if quick
        else (
            (7, 100, 1000, 3000, 10_000),
            (100_000, 1_000_000),
        )
    )
    figures: dict[str, dict[str, float]] = {}
    columns = ("direct s", "ours s", "times", "MiB", "ours MiB", "differ")
    print(f"{'domains':>9}" + "".join(f"{column:>10}" for column in columns))
    with tempfile.TemporaryDirectory() as folder:
        for k in both + alone:
            x = embeddings(k, Path(folder) / "x.npy")
            repeats = 3 if k <= 3000 else 1
            mine, seconds, memory = measure(ours, x, repeats)
            row = {"seconds": seconds, "mebibytes": memory}
            if k in both:
                theirs, direct_seconds, direct_memory = measure(direct, x, repeats)
                row |= {
                    "direct_seconds": direct_seconds,
                    "direct_mebibytes": direct_memory,
                    "faster": direct_seconds / seconds,
                    "memory_share": memory / direct_memory,
                    "difference": float(np.abs(mine - theirs).max()),
                }
            figures[str(k)] = row
            print(
                f"{k:9,}{row.get('direct_seconds', np.nan):10.3f}{seconds:10.3f}"
                f"{row.get('faster', np.nan):10.1f}{row.get('direct_mebibytes', np.nan):10.0f}"
                f"{memory:10.0f}{row.get('difference', np.nan):10.0e}",
                flush=True,
            )
            del x
    print(json.dumps({"benchmark": "leverage", "width": WIDTH, "quick": quick, "domains": figures}))


if __name__ == "__main__":
    main()
