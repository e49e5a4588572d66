"""Time a checkpoint with and without its manifest and the check that its tensors are finite.

    python -m benchmarks.checkpoint_check [--layers 12] [--width 640] [--repeats 7]

One process trains a step of a GPT of about 85 million parameters, so that a checkpoint has 1 GB.
Then it saves and loads the checkpoint again and again, in turn as the package does it and with the
checks taken out. The two sequences of times are compared pair by pair, and the median of the ratios
counts. The first pair warms up and does not count. The script prints a table and, as its last line,
one JSON object.
"""

import argparse
import collections
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from nemo_chameleon.config import load_config
from nemo_chameleon.distributed.layout import model_parallel
from nemo_chameleon.distributed.processes import process_group
from nemo_chameleon.models import checkpoint, whole
from nemo_chameleon.models.gpt import build_gpt
from nemo_chameleon.models.optimizer import build_optimizer, build_scheduler
from nemo_chameleon.utils.tables import table

VOCABULARY = 50_304
RUN = ["train.global_batch_size=1", "train.train_iters=10", "train.precision=fp32"]


def seconds(call: Callable[[], object], checked: bool) -> float:
    """Return the duration of a call, with the checks or with nothing in their place."""
    with contextlib.ExitStack() as stack:
        if not checked:
            for module, name in (
                (whole, "seal"),
                (whole, "fault_of_contents"),
                (checkpoint, "require_finite"),
            ):
                stack.enter_context(mock.patch.object(module, name, lambda argument: None))
        start = time.perf_counter()
        call()
        return time.perf_counter() - start


def main() -> None:
    """Time saving and loading, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    settings = {
        "num_layers": arguments.layers,
        "hidden_size": arguments.width,
        "ffn_hidden_size": 4 * arguments.width,
        "num_attention_heads": arguments.width // 64,
        "seq_length": 64,
    }
    overrides = [f"model.{key}={value}" for key, value in settings.items()]
    with tempfile.TemporaryDirectory() as place, process_group():
        run = load_config(None, [f"output={place}", "data.vocab_size=512", *overrides, *RUN])
        with model_parallel(run.parallel, seed=0):
            model = build_gpt(run, VOCABULARY)
            optimizer = build_optimizer(run, model)
            scheduler = build_scheduler(run, optimizer)
            for parameter in model.parameters():
                parameter.main_grad.fill_(1e-3)
            optimizer.step()
            scheduler.step(increment=1)
            parts = (model, optimizer, scheduler)

            def save() -> Path:
                return checkpoint.save(Path(place), 1, {"identity": {}}, *parts)

            def load() -> None:
                path = Path(place) / "iter_0000001"
                assert whole.fault_of(path) is None
                assert whole.fault_of_contents(path) is None
                checkpoint.load(path, *parts)

            times: dict[tuple[str, bool], list[float]] = collections.defaultdict(list)
            for repeat in range(arguments.repeats + 1):
                turns = (True, False) if repeat % 2 else (False, True)
                for checked in turns:
                    times["save", checked].append(seconds(save, checked))
                save()  # so that there is a manifest
                for checked in turns:
                    times["load", checked].append(seconds(load, checked))
            size = sum(file.stat().st_size for file in (Path(place) / "iter_0000001").iterdir())
    rows: list[list[str]] = []
    found: dict[str, Any] = {"gigabytes": round(size / 1e9, 3), "torch": torch.__version__}
    for what in ("save", "load"):
        pairs = list(zip(times[what, True][1:], times[what, False][1:], strict=True))
        ratios = sorted(checked / unchecked for checked, unchecked in pairs)
        found[what] = {"ratio": round(statistics.median(ratios), 3), "ratios": ratios}
        rows.append(
            [what, *(f"{x:.3f}" for x in (statistics.median(ratios), *ratios[:: len(ratios) - 1]))]
        )
    print(table(["", "ratio", "least", "most"], rows))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
