"""Several models in one job: what is left of the first, and which rank writes which file."""

import gc
import os
import signal
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import ranks
from nemo_chameleon import provider
from nemo_chameleon.config.schema import Config
from nemo_chameleon.distributed import shared_storage
from nemo_chameleon.provider import proxy
from nemo_chameleon.train import trainer
from nemo_chameleon.utils.errors import UserError
from project import RECIPE, Launch


def held() -> tuple[int, int, int]:
    """Return the number of process groups, the number of threads, and the bytes of all tensors."""
    gc.collect()
    tensors = [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor)]
    storages = {item.untyped_storage().data_ptr(): item.untyped_storage() for item in tensors}
    groups = len(dist.distributed_c10d._world.pg_map)
    threads = len([*Path("/proc/self/task").iterdir()])
    return groups, threads, sum(storage.nbytes() for storage in storages.values())


@pytest.mark.usefixtures("alone")
def test_nothing_is_left_of_the_proxy(config: Config) -> None:
    """Nothing is left of the proxy: no process group, no thread, no weights and no optimizer."""
    proxy.compute_mixture(provider.prepare(config))  # the first time makes what is made only once
    groups, threads, size = held()
    weights = 4 * 2 * 32 * (512 + 4 * 12 * 32)  # bytes of a little over half of the weights
    within = []
    one_step = trainer.Trainer.step

    def step(self: trainer.Trainer, batches: Any) -> float | None:
        within.append(held())
        return one_step(self, batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, "step", step)
        config.output += "-again"
        config.chameleon.file = f"{config.output}/mixture.json"
        proxy.compute_mixture(provider.prepare(config))
    assert within[-1][0] > groups
    assert within[-1][1] > threads
    assert within[-1][2] - size > weights
    after = held()
    assert after[0] == groups
    assert after[1] <= threads
    assert after[2] - size < weights / 100


FAILS = """
import os
from nemo_chameleon.utils.console import program

os.environ["LOCAL_RANK"] = "0"  # on a node of its own


@program
def main():
    from nemo_chameleon.distributed.collectives import on_first_rank
    from nemo_chameleon.distributed.processes import process_group

    with process_group():
        on_first_rank(lambda: {}["the culprit"])


if __name__ == "__main__":
    main()
"""


def test_what_the_first_rank_fails_at_is_what_is_said(tmp_path: Path) -> None:
    """When the first rank fails, the rank that waits for it logs nothing and is ended."""
    (tmp_path / "fails.py").write_text(FAILS)
    both = ranks.start_script(tmp_path / "fails.py", [], 2)
    assert both.wait() == 1
    assert both.codes == [1, -signal.SIGTERM]
    assert both.said("stderr").count("KeyError: 'the culprit'") == 1
    assert "the first rank failed" not in both.said("stderr")


@pytest.mark.slow
def test_torchrun_says_what_the_first_rank_failed_at(torchrun: Launch, tmp_path: Path) -> None:
    """The other ranks wait until the first one has printed its error.

    torchrun's summary has the error again.
    """
    (tmp_path / "fails.py").write_text(FAILS)
    done = torchrun(processes=2, check=False, recipe=tmp_path / "fails.py")
    assert done.returncode == 1
    assert done.stderr.count("KeyError: 'the culprit'") == 2
    assert "the first rank failed" not in done.stderr


WATCH = """
import os
import sys

LOG = {log!r} + os.environ.get("RANK", "")


def watch(event, arguments):
    if event == "open":
        path, _, flags = arguments
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    elif event == "os.rename":
        path, writes = arguments[1], True
    else:
        return
    if writes and isinstance(path, (str, os.PathLike)) and os.fspath(path) != LOG:
        number = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(number, (os.path.abspath(path) + "\\n").encode())
        os.close(number)


if "RANK" in os.environ:
    sys.addaudithook(watch)
"""


def test_no_file_is_written_by_two_ranks(
    start: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file is written by two ranks, whether a run starts or continues.

    The helper processes that write checkpoints count as their ranks.
    """
    (tmp_path / "hook").mkdir()
    log = tmp_path / "written-by-"
    watch = WATCH.format(log=str(log))
    # Newly started processes read this file. A forked one has the same text in its script.
    (tmp_path / "hook" / "sitecustomize.py").write_text(watch)
    watched = tmp_path / "watched.py"
    watched.write_text(watch + RECIPE.read_text())
    paths = [str(tmp_path / "hook"), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    settings = ("checkpoint.save_interval=3", "proxy.parallel.tensor_model_parallel_size=2")
    for iterations in (6, 6):
        start(*settings, f"train.train_iters={iterations}", processes=2, recipe=watched)
    writers = defaultdict(set)
    for rank in ("0", "1"):
        for line in Path(f"{log}{rank}").read_text().splitlines():
            if line.startswith(str(tmp_path / "out")):
                writers[line].add(rank)
    assert {path for path, ranks in writers.items() if len(ranks) > 1} == set()
    names = {Path(path).name for path in writers}
    assert {"mixture.json", "mixture.safetensors", "result.json", "state.json"} <= names
    assert any(name.endswith(".npy") for name in names), "Megatron's indices"
    by_second = {Path(path).suffix for path, ranks in writers.items() if ranks == {"1"}}
    assert by_second == {".distcp"}, "its part of checkpoints is all that it writes"


@pytest.mark.usefixtures("alone")
def test_output_that_cannot_be_written_to(config: Config) -> None:
    """An output that cannot be written to is refused before anything is trained."""
    Path(config.output).write_text("a file")
    with pytest.raises(UserError, match=f"output={config.output} cannot be written to"):
        shared_storage.require_shared(config)
