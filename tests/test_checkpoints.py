"""models/{tracker,whole,pickles}.py and train/resuming.py: a run continues from what is whole."""

import errno
import inspect
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies.torch import MCoreMetadata
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    Metadata,
    MetadataIndex,
)
from torch.serialization import _get_layout

from nemo_chameleon.distributed.processes import process_group
from nemo_chameleon.models import checkpoint, layers, pickles, tracker
from nemo_chameleon.models import whole as whole_module
from nemo_chameleon.models.content import digests_of
from nemo_chameleon.models.finite import NotFiniteError, require_finite
from nemo_chameleon.models.identity import START, START_DIGEST
from nemo_chameleon.models.pretrained import find_checkpoint
from nemo_chameleon.train import result, trainer
from nemo_chameleon.train.run import TrainingRun
from nemo_chameleon.utils import manifest
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.ranks import rank
from ranks import on_ranks

pytestmark = pytest.mark.usefixtures("alone")
TRACKER = "latest_checkpointed_iteration.txt"


@pytest.fixture
def whole(job: TrainingRun) -> dict[str, Any]:
    """Train a run with checkpoints after iterations 2, 4 and 6; return its result."""
    return trainer.train(job)


def test_a_checkpoint_is_whole_or_not_there(
    job: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a run dies while it saves, each checkpoint that has its name is whole.

    The tracker names one of them.
    """
    save, died = checkpoint.save, 0
    steps: list[tuple[Any, str]] = [
        (dist_checkpointing, "save"),
        (checkpoint, "write_atomically"),
        (whole_module, "seal"),
        (checkpoint, "keep_names"),
        (checkpoint, "name_newest"),
    ]

    def dying(do: Callable[..., Any], after: bool) -> Callable[..., Any]:
        def die(*of: Any) -> None:
            nonlocal died
            died += 1
            if after:
                do(*of)
            raise KeyboardInterrupt

        return die

    def die_often(directory: Path, iteration: int, *rest: Any) -> Path:
        for place, name in steps if iteration == 4 else []:
            for after in (False, True):
                with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                    patch.setattr(place, name, dying(getattr(place, name), after))
                    save(directory, iteration, *rest)
                there = [folder for _, folder in tracker.numbered(directory)]
                assert tracker.tracked(directory)[1] in there
                assert not any(map(tracker.fault_of, there))
        return save(directory, iteration, *rest)

    monkeypatch.setattr(checkpoint, "save", die_often)
    trainer.train(job)
    assert died == 2 * len(steps)
    assert tracker.newest(job.directory) == job.directory / "iter_0000006"


def flip(path: Path) -> None:
    """Change one byte in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def halve(path: Path) -> None:
    """Cut a file to half its size, as a full disk or a copy that broke off does."""
    os.truncate(path, path.stat().st_size // 2)


def tensors(path: Path) -> Path:
    """Return the largest of a checkpoint's files with tensors."""
    return max(path.glob("*.distcp"), key=lambda file: file.stat().st_size)


def cut(path: Path, name: str) -> None:
    """Cut one of a checkpoint's files to half its size."""
    halve(tensors(path) if name == "tensors" else path / name)


def lose(path: Path, name: str) -> None:
    """Remove one of a checkpoint's files."""
    (tensors(path) if name == "tensors" else path / name).unlink()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a byte of the tensors": lambda path: flip(tensors(path)),
    "a byte of common.pt": lambda path: flip(path / "common.pt"),
    "no folder": shutil.rmtree,
    "empty metadata.json": lambda path: os.truncate(path / "metadata.json", 0),
    **{
        f"half of {name}": lambda path, name=name: cut(path, name)  # type: ignore[misc]
        for name in ("tensors", "common.pt", ".metadata", "state.json", manifest.NAME)
    },
    **{
        f"no {name}": lambda path, name=name: lose(path, name)  # type: ignore[misc]
        for name in ("tensors", "common.pt", ".metadata", "state.json", "metadata.json")
    },
}
EARLIER = [name for name in DAMAGES if name not in ("a byte of the tensors", "no folder")]
EARLIER.remove(f"half of {manifest.NAME}")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_put_aside(
    job: TrainingRun, whole: dict[str, Any], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The run says so, goes on from the checkpoint before, and ends with the same figures."""
    DAMAGES[damage](job.directory / "iter_0000006")
    again = trainer.train(job)
    assert again["loss"] == pytest.approx(whole["loss"], abs=1e-6)
    assert again["domains"] == whole["domains"]
    assert "iter_0000006 is damaged: " in caplog.text
    assert "iterations 5 to 6 are repeated" in caplog.text
    assert (job.directory / "iter_0000006.damaged").is_dir() == (damage != "no folder")
    assert ("is kept as iter_0000006.damaged" in caplog.text) == (damage != "no folder")
    assert "is kept as iter_0000006\n" not in caplog.text
    assert tracker.newest(job.directory) == job.directory / "iter_0000006"
    assert trainer.train(job)["loss"] == again["loss"]


@pytest.mark.parametrize("damage", EARLIER)
def test_a_damaged_checkpoint_of_an_earlier_version(
    job: TrainingRun, whole: dict[str, Any], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A checkpoint without a manifest is compared with its own description."""
    path = job.directory / "iter_0000006"
    (path / manifest.NAME).unlink()
    DAMAGES[damage](path)
    assert trainer.train(job)["domains"] == whole["domains"]
    assert "iter_0000006 is damaged: " in caplog.text


def test_several_are_put_aside(
    job: TrainingRun, whole: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """If the checkpoint before is damaged too, the run goes on from the next one."""
    for iteration in (4, 6):
        flip(tensors(job.directory / f"iter_{iteration:07d}"))
    assert trainer.train(job)["domains"] == whole["domains"]
    assert "iterations 3 to 6 are repeated" in caplog.text


def test_no_checkpoint_is_whole(job: TrainingRun, whole: dict[str, Any]) -> None:
    """A run never starts from iteration 0 because all its checkpoints are damaged."""
    del whole
    for iteration in (2, 4, 6):
        (job.directory / f"iter_{iteration:07d}" / ".metadata").unlink()
    before = sorted(job.directory.iterdir())
    with pytest.raises(UserError, match=r"none of them is whole.*\.metadata is missing.* move"):
        trainer.train(job)
    (job.directory / TRACKER).unlink()
    with pytest.raises(UserError, match="none of them is whole"):
        trainer.train(job)
    assert sorted([*job.directory.iterdir(), job.directory / TRACKER]) == before
    job.directory.rename(job.directory.with_name("aside"))
    assert trainer.train(job)["iterations"] == 6
    for iteration in (2, 4, 6):  # which the files' sizes do not show
        flip(tensors(job.directory / f"iter_{iteration:07d}"))
    with pytest.raises(UserError, match=r"iter_0000002: the contents of .* Nothing was renamed"):
        trainer.train(job)
    assert sorted(job.directory.iterdir()) == before


def stale(*_: object) -> NoReturn:
    """Fail as a file system does that lost its server."""
    raise OSError(errno.ESTALE, "Stale file handle")


def no_memory(*_: object) -> NoReturn:
    """Fail as a node without memory does."""
    raise MemoryError


BAD_NODES: dict[str, tuple[Any, str, Any, str]] = {
    "contents": (manifest, "_entry", stale, "Stale file handle"),
    "sizes": (manifest, "faults_of_sizes", stale, "Stale file handle"),
    "memory": (pickles._Unpickler, "find_class", no_memory, "MemoryError"),
    "common.pt": (torch.serialization, "get_unsafe_globals_in_checkpoint", no_memory, "Memory"),
    "folder": (os, "scandir", stale, "Stale file handle"),
    "state": (json, "loads", stale, "state.json cannot be read on .*Stale"),
}


@pytest.mark.parametrize("what", BAD_NODES)
def test_a_bad_node_renames_nothing(
    job: TrainingRun, whole: dict[str, Any], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a node cannot read is no damage: the error names the node, and another node goes on."""
    del whole
    before = sorted(job.directory.rglob("*"))
    module, name, broken, says = BAD_NODES[what]
    monkeypatch.setenv("SLURMD_NODENAME", "node17")
    with monkeypatch.context() as patch, pytest.raises(UserError) as error:
        patch.setattr(module, name, broken)
        trainer.train(job)
    assert re.search("cannot be read on node17: .*Nothing was renamed", str(error.value))
    assert re.search(says, str(error.value))
    assert {*before} <= {*job.directory.rglob("*")}
    assert tracker.tracked(job.directory)[1] == job.directory / "iter_0000006"
    assert trainer.train(job)["iterations"] == 6
    assert not [*job.directory.glob("*.damaged")]


def test_another_node_sees_no_fault(
    job: TrainingRun, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hash that is wrong only once is the fault of a node's memory, and renames nothing."""
    del whole
    real, wrong = manifest._entry, [True]

    def flipped(path: Path) -> tuple[int, str]:
        size, hashed = real(path)
        return size, "0" if path.suffix == ".distcp" and wrong and wrong.pop() else hashed

    monkeypatch.setattr(manifest, "_entry", flipped)
    with pytest.raises(UserError, match=r"as .* reads it, but .* Nothing was renamed"):
        trainer.train(job)
    assert not [*job.directory.glob("*.damaged")]
    assert trainer.train(job)["iterations"] == 6


def second_look(folder: Path, bad: Sequence[int]) -> str | None:
    """Return on a rank what is wrong with a folder of which some nodes read wrong contents."""
    os.environ["SLURMD_NODENAME"] = f"node{rank() // 2}"
    real = manifest._entry
    manifest._entry = lambda path: (real(path)[0], "0") if rank() // 2 in bad else real(path)
    try:
        with process_group():
            return whole_module.fault_of_contents(folder)
    except UserError as error:
        return f"error: {error}"
    finally:
        manifest._entry = real


def test_damage_is_confirmed_by_another_node(tmp_path: Path) -> None:
    """Two nodes of two ranks: what both read wrongly is damage, what one does is the node's."""
    for name in "abcd":
        (tmp_path / name).write_text(name)
    manifest.write(tmp_path, manifest.entries_of(tmp_path, "abcd"))
    assert on_ranks(4, second_look, tmp_path, []) == [None] * 4
    (one,) = {*on_ranks(4, second_look, tmp_path, [1])}
    assert one is not None
    assert one.startswith(f"error: {tmp_path}: the contents of c are not")
    assert "as node1 reads it, but node0" in one
    assert {*on_ranks(4, second_look, tmp_path, [0, 1])} == {
        "the contents of a are not what was written"
    }


def test_a_lost_tracker(
    job: TrainingRun,
    whole: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A folder without its tracker, as after a copy, goes on from its newest checkpoint."""
    monkeypatch.setattr(trainer.Trainer, "step", lambda *_: pytest.fail("it trains again"))
    (job.directory / TRACKER).unlink()
    assert trainer.train(job)["domains"] == whole["domains"]
    assert f"{TRACKER} is missing or damaged, and is written anew" in caplog.text
    assert (job.directory / TRACKER).read_text() == "6\n"


def sealed(folder: Path) -> str:
    """Return what a rank says of a checkpoint that one of two ranks cannot read back."""

    def failing(path: Path, names: Any) -> Any:
        if rank() == 1:
            raise OSError(errno.EIO, "Input/output error")
        return {}

    with pytest.MonkeyPatch.context() as patch, process_group():
        patch.setattr(whole_module, "_written", lambda path: ([], {}))
        patch.setattr(manifest, "entries_of", failing)
        try:
            whole_module.seal(folder)
        except UserError as error:
            return str(error)
    return ""


def test_what_one_rank_cannot_read_back_all_ranks_say(tmp_path: Path) -> None:
    """No rank waits for one that cannot read what it wrote, and nothing is sealed."""
    first, second = on_ranks(2, sealed, tmp_path)
    assert first == second
    assert "cannot be read on" in first and "Input/output error" in first
    assert not (tmp_path / manifest.NAME).exists()


def test_a_short_file_is_not_sealed(job: TrainingRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a full disk cut before the manifest is written is no checkpoint, nor is it resumed."""
    seal = whole_module.seal

    def short(path: Path) -> None:
        if "0000004" in path.name:
            halve(tensors(path))
        seal(path)

    with monkeypatch.context() as patch:
        patch.setattr(whole_module, "seal", short)
        with pytest.raises(UserError, match=r"iter_0000004\.tmp is not what was written: .*distcp"):
            trainer.train(job)
        assert tracker.newest(job.directory) == job.directory / "iter_0000002"
        patch.setattr(whole_module, "_shorter", lambda *_: None)
        trainer.train(job)
    shutil.rmtree(job.directory / "iter_0000006")
    (job.directory / TRACKER).write_text("4")
    assert trainer.train(job)["iterations"] == 6
    assert (job.directory / "iter_0000004.damaged").is_dir()


def test_a_list_of_a_folder_that_is_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of tensors is in the manifest though the first node does not list it yet."""
    place = _StorageInfo("__1_0.distcp", 0, 3)
    described = Metadata({}, storage_data={MetadataIndex("decoder.x"): place})
    (tmp_path / ".metadata").write_bytes(pickle.dumps(described))
    (tmp_path / "__1_0.distcp").write_text("abc")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", lambda folder: [folder / ".metadata"])
        whole_module.seal(tmp_path)
    assert {*(manifest.read(tmp_path) or ())} == {".metadata", "__1_0.distcp"}


def test_what_is_not_finite_is_no_checkpoint(
    job: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that are not finite replace no checkpoint, not even in the last iteration.

    Neither is a result written. With a lower learning rate, the run then goes on.
    """
    whole = trainer.train(job)
    shutil.rmtree(job.directory)
    step = trainer.Trainer.step

    def poisoned(self: trainer.Trainer, batches: Any) -> float | None:
        norm = step(self, batches)
        if self.iteration == 6:
            next(self.model.parameters()).data.view(-1)[0] = float("nan")
        return norm

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "step", poisoned)
        with pytest.raises(UserError, match=r"not finite at iteration 6; lower optimizer\.lr"):
            trainer.train(job)
    assert tracker.newest(job.directory) == job.directory / "iter_0000004"
    assert not (job.directory / "result.json").exists()
    job.config.optimizer.lr /= 10
    with pytest.raises(UserError, match=r"optimizer\.lr"):
        trainer.train(job)
    job.config.checkpoint.on_optimizer_change = "accept"
    lower = trainer.Trainer.__init__
    rates: list[float] = []

    def noted(self: trainer.Trainer, *of: Any) -> None:
        lower(self, *of)
        rates.extend(group["lr"] for group in self.optimizer.param_groups)

    monkeypatch.setattr(trainer.Trainer, "__init__", noted)
    assert trainer.train(job)["loss"] != whole["loss"]
    assert max(rates) <= job.config.optimizer.lr


def test_a_checkpoint_that_is_not_finite_is_put_aside(
    job: TrainingRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An earlier version may have saved one; the run goes on from the one before."""
    step = trainer.Trainer.step

    def poisoned(self: trainer.Trainer, batches: Any) -> float | None:
        norm = step(self, batches)
        if self.iteration == 6:
            next(self.model.parameters()).data.view(-1)[0] = float("inf")
        return norm

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "step", poisoned)
        patch.setattr("nemo_chameleon.models.checkpoint.require_finite", lambda parts: None)
        patch.setattr(trainer.Trainer, "_evaluate", lambda self: {})
        trainer.train(job)
    assert trainer.train(job)["iterations"] == 6
    assert "iter_0000006 is damaged: the weights" in caplog.text
    start = job.directory / "iter_0000006.damaged"
    job.config.checkpoint.pretrained_checkpoint, job.config.output = str(start), f"{start}.out"
    with pytest.raises(UserError, match=rf"^{START}={start}: its weights are not finite.* earlier"):
        trainer.train(job)


@pytest.mark.parametrize("what", ["loss", "norm of the gradients", "validation loss of code"])
def test_a_figure_that_is_not_finite_ends_the_run(
    job: TrainingRun, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Also in the last iteration it is named, no checkpoint is replaced and no result written."""
    step, nan = trainer.Trainer.step, float("nan")

    def poisoned(self: trainer.Trainer, batches: Any) -> float | None:
        norm = step(self, batches)
        if self.iteration == 6 and what == "loss":
            self.last_losses[0] *= nan
        return nan if self.iteration == 6 and what.startswith("norm") else norm

    monkeypatch.setattr(trainer.Trainer, "step", poisoned)
    if what.startswith("validation"):
        scores = {"code": {"loss": nan, "perplexity": nan}}
        monkeypatch.setattr(trainer, "evaluate", lambda *of: scores)
    with pytest.raises(UserError, match=rf"the {what} is nan at iteration 6; lower optimizer\.lr"):
        trainer.train(job)
    last = 6 if what.startswith("validation") else 4
    assert tracker.newest(job.directory) == job.directory / f"iter_{last:07d}"
    assert not (job.directory / "result.json").exists()
    with pytest.raises(ValueError, match="not JSON compliant"):
        result.save_result(job, {"loss": nan})
    assert not (job.directory / "result.json").exists()


def test_an_optimizer_that_is_not_finite_is_no_checkpoint(
    job: TrainingRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its state counts as the weights do, when it is saved and when it is loaded."""
    step = trainer.Trainer.step

    def poisoned(self: trainer.Trainer, batches: Any) -> float | None:
        norm = step(self, batches)
        if self.iteration == 6:
            _, moments = next(iter(self.optimizer.state.items()))
            moments["exp_avg"].view(-1)[0] = float("inf")
        return norm

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "step", poisoned)
        with pytest.raises(UserError, match="the state of the optimizer are not finite"):
            trainer.train(job)
        assert tracker.newest(job.directory) == job.directory / "iter_0000004"
        with monkeypatch.context() as earlier:
            earlier.setattr(checkpoint, "require_finite", lambda parts: None)
            trainer.train(job)
    assert trainer.train(job)["iterations"] == 6
    assert "iter_0000006 is damaged: the weights or the state of the optimizer" in caplog.text


def test_large_values_are_finite() -> None:
    """Values whose sum is infinite are finite; a single one that is not is found among many."""
    large = torch.full((1000,), 3e38)
    require_finite({"a": [large, torch.zeros(0), torch.arange(3)]})
    for value in (torch.inf, -torch.inf, torch.nan):
        wrong = torch.zeros(100_003)
        wrong[77_777] = value
        with pytest.raises(NotFiniteError):
            require_finite({"a": [large, wrong]})
    with pytest.raises(NotFiniteError):
        require_finite([torch.tensor([torch.inf, -torch.inf])])


def is_refused(wrong: int) -> bool:
    """Return on a rank whether a value is refused that one rank has."""
    with process_group():
        try:
            require_finite([torch.tensor([float("nan") if rank() == wrong else 1.0])])
        except NotFiniteError:
            return True
        return False


def test_what_one_rank_has_all_ranks_refuse() -> None:
    """No rank waits for one whose part of the model is not finite."""
    assert on_ranks(2, is_refused, 1) == [True, True]
    assert on_ranks(2, is_refused, -1) == [False, False]


@pytest.mark.parametrize("text", ["", "\udcff\udcfe", "²", "6.0", "release", "9" * 5000])
def test_a_damaged_tracker(
    job: TrainingRun, whole: dict[str, Any], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tracker without a number, as after a loss of power, costs no checkpoint."""
    monkeypatch.setattr(trainer.Trainer, "step", lambda *_: pytest.fail("it trains again"))
    (job.directory / TRACKER).write_bytes(text.encode(errors="surrogateescape"))
    again = trainer.train(job)
    assert again["domains"] == whole["domains"]


def test_what_is_left_of_checkpoints(
    job: TrainingRun, whole: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The next start removes what killed saves left; other names of users and links' ends stay."""
    del whole
    keep = ["iter_0000006_best", "iter_0000002.damaged", "iter_x.tmp", "iter_0000001.tmp.mine"]
    for name in ("iter_0000003.tmp", "iter_0000123.tmp", *keep):
        (job.directory / name).mkdir()
    caplog.set_level("INFO")
    trainer.train(job)
    assert not [*job.directory.glob("iter_0000*3.tmp")]
    assert "iter_0000003.tmp was left by a job that was killed while it saved" in caplog.text
    (job.directory / "iter_0000009.tmp").mkdir()
    (job.directory / "iter_0000004").rename(tmp_path / "elsewhere")
    (job.directory / "iter_0000004").symlink_to(tmp_path / "elsewhere")
    tracker.remove_all(job.directory)
    assert sorted(path.name for path in job.directory.glob("iter_*")) == sorted(keep)
    assert (tmp_path / "elsewhere" / ".metadata").is_file()


def test_what_cannot_be_removed_is_named(
    job: TrainingRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """checkpoint.keep removes what it can, and says what it leaves."""
    remove = shutil.rmtree

    def refused(path: Path, *of: Any, **named: Any) -> None:
        if Path(path).name == "iter_0000002" and not named:
            raise PermissionError("it is somebody else's")
        remove(path, *of, **named)

    monkeypatch.setattr(shutil, "rmtree", refused)
    job.config.checkpoint.keep = 1
    assert trainer.train(job)["iterations"] == 6
    assert [n for n, _ in sorted(tracker.numbered(job.directory))] == [2, 6]
    assert "iter_0000002 cannot be removed and takes up room" in caplog.text


def test_what_is_loaded_is_what_is_recorded(
    job: TrainingRun, whole: dict[str, Any], tmp_path: Path
) -> None:
    """The tracker of the checkpoint that a run starts from may move on while the run trains."""
    del whole
    start = replace(job.config.checkpoint, pretrained_checkpoint=str(job.directory))
    config = replace(job.config, checkpoint=start, output=str(tmp_path / "other"))
    run = replace(job, settings=config, config=config)
    source = run.pretrained()
    assert source is not None
    (job.directory / TRACKER).write_text("4")
    assert source.path == job.directory / "iter_0000006"
    assert run.identity()[START_DIGEST] == digests_of(source.path)


class Command:
    """An object whose pickle runs a program."""

    def __init__(self, file: Path) -> None:
        """Name the file that the program makes."""
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        """Describe the call."""
        return os.system, (f"touch {self.file}",)


def test_nothing_of_a_stranger_is_run(
    job: TrainingRun, whole: dict[str, Any], tmp_path: Path
) -> None:
    """A pickle that runs a program is refused by name, in .metadata and in common.pt."""
    del whole
    newest, trap = job.directory / "iter_0000006", tmp_path / "ran"
    described = (newest / ".metadata").read_bytes()
    for file in newest.iterdir():
        if file.name == manifest.NAME:
            file.unlink()
    (newest / ".metadata").write_bytes(pickle.dumps(Command(trap)))
    with pytest.raises(UserError, match=r"\.metadata is not read, because it would run posix\.sys"):
        trainer.train(job)
    (newest / ".metadata").write_bytes(described)
    torch.save({"x": Command(trap)}, newest / "common.pt")
    with pytest.raises(UserError, match=r"common\.pt is not read, because it would run posix\.sys"):
        trainer.train(job)
    assert not trap.exists()


def test_nothing_of_a_stranger_is_run_to_start_from(
    job: TrainingRun, whole: dict[str, Any], tmp_path: Path
) -> None:
    """checkpoint.pretrained_checkpoint and proxy.load are refused in the same way, and if damaged.

    The key is named.
    """
    del whole
    start, trap = tmp_path / "start", tmp_path / "ran"
    shutil.copytree(job.directory / "iter_0000006", start)
    config = job.config
    config.checkpoint.pretrained_checkpoint = str(start)
    config.output = str(tmp_path / "other")
    assert find_checkpoint("proxy.load", str(start), config, config.data).path == start
    flip(tensors(start))
    with pytest.raises(UserError, match=r"contents of .* are not what was written"):
        trainer.train(job)
    (start / ".metadata").write_bytes(pickle.dumps(Command(trap)))
    with pytest.raises(UserError, match=r"would run posix\.system"):
        find_checkpoint("proxy.load", str(start), config, config.data)
    (start / ".metadata").unlink()
    with pytest.raises(UserError, match=f"proxy.load={start} is damaged"):
        find_checkpoint("proxy.load", str(start), config, config.data)
    assert not trap.exists()


class WithExtraState(layers.TorchAttention):
    """Attention with an extra state, which Transformer Engine would unpickle."""

    def get_extra_state(self) -> torch.Tensor:
        """Return the state that a checkpoint keeps."""
        return torch.zeros(2, dtype=torch.uint8)

    def set_extra_state(self, state: object) -> None:
        """Refuse every state."""
        raise AssertionError(state)


def test_extra_states_of_a_stranger_are_not_loaded(
    job: TrainingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run starts from weights alone; its own checkpoints have the states that it continues with.

    A proxy.load is loaded in the same way.
    """
    monkeypatch.setattr(layers, "TorchAttention", WithExtraState)
    trainer.train(job)
    described = pickles.read_metadata(job.directory / "iter_0000006")
    assert any("_extra_state" in name for name in described.state_dict_metadata)
    with pytest.raises(AssertionError):
        trainer.train(job)
    job.config.checkpoint.pretrained_checkpoint = str(job.directory)
    job.config.output = str(tmp_path / "other")
    assert trainer.train(job)["iterations"] == 6


def test_nothing_beside_the_tensors_is_run(
    job: TrainingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object that lies in a file of tensors is refused when a run continues from it."""
    trap = tmp_path / "ran"
    monkeypatch.setattr(layers, "TorchAttention", WithExtraState)
    monkeypatch.setattr(WithExtraState, "get_extra_state", lambda self: Command(trap))
    trainer.train(job)
    with pytest.raises(UserError, match=r"iter_0000006 is not read, because an object .* rename"):
        trainer.train(job)
    assert not trap.exists()


def test_classes_that_only_look_harmless(tmp_path: Path) -> None:
    """Functions and attributes of admitted modules are refused, as classes elsewhere are."""
    for module, name in (
        ("torch.distributed.checkpoint.filesystem", "os.system"),
        ("torch.distributed.checkpoint.filesystem", "FileSystemReader"),
        ("torch", "hub.load"),
        ("torch", "load"),
        ("builtins", "eval"),
        ("collections", "namedtuple"),
    ):
        command = f"c{module}\n{name}\n(tR.".encode()
        (tmp_path / pickles.METADATA).write_bytes(command)
        with pytest.raises(UserError, match=f"would run {module}.{name}"):
            pickles.read_metadata(tmp_path)


@pytest.mark.parametrize(
    "target",
    [
        "ctorch.distributed.checkpoint.metadata\nMetadata\n",
        "ctorch.distributed.checkpoint.metadata\n_MEM_FORMAT_ENCODING\n",
        "ctorch.distributed.checkpoint.metadata\n_MEM_FORMAT_ENCODING\n(I0\ntR",
        "cpathlib\nPosixPath\n",
        "ctorch.serialization\n_get_layout\n",
        "cmegatron.core.dist_checkpointing.strategies.torch\nMCoreMetadata\n",
    ],
)
@pytest.mark.parametrize("state", ["N}Vstorage_data\nI1\ns\x86b.", "}Vstorage_data\nI1\nsb."])
def test_nothing_of_this_process_is_changed(tmp_path: Path, target: str, state: str) -> None:
    """The state of a pickle is given to objects that the pickle makes, and to no shared one."""
    (tmp_path / pickles.METADATA).write_bytes(f"{target}{state}".encode("latin-1"))
    with pytest.raises(UserError, match=r"\.metadata is not read, because it would run setattr on"):
        pickles.read_metadata(tmp_path)
    encoding = _MEM_FORMAT_ENCODING.TORCH_CONTIGUOUS_FORMAT
    for shared in (Metadata, encoding, type(encoding), Path("/"), _get_layout, MCoreMetadata):
        assert not isinstance(getattr(shared, "storage_data", None), int)


def test_the_class_of_earlier_megatrons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Megatron until 0.15 described checkpoints by a class of its own, which is read."""
    described = MCoreMetadata.__new__(MCoreMetadata)
    vars(described).update(storage_data={}, mcore_data={"model.weight": {"shape": (2, 3)}})
    (tmp_path / pickles.METADATA).write_bytes(pickle.dumps(described))
    assert pickles.read_metadata(tmp_path).mcore_data == {"model.weight": {"shape": (2, 3)}}
    # A class that the installed version lacks says nothing about the checkpoint.
    monkeypatch.delattr(inspect.getmodule(MCoreMetadata), MCoreMetadata.__name__)
    with pytest.raises(UserError, match=r"has no MCoreMetadata .* install the versions"):
        whole_module.fault_of(tmp_path)


def test_manifest_of_a_folder(tmp_path: Path) -> None:
    """Sizes and contents are compared; a manifest that is damaged is an error."""
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    (tmp_path / "b").touch()
    manifest.write(tmp_path, manifest.entries_of(tmp_path, ["a", "b"]))
    entries = manifest.read(tmp_path)
    assert entries is not None
    assert manifest.fault_of(tmp_path, entries) is None
    flip(tmp_path / "a")
    assert manifest.fault_of(tmp_path, entries, content=False) is None
    assert "contents of a" in str(manifest.fault_of(tmp_path, entries))
    (tmp_path / "b").write_text("x")
    assert manifest.fault_of(tmp_path, entries) == "b has 1 bytes instead of 0"
    (tmp_path / "b").unlink()
    assert manifest.fault_of(tmp_path, entries) == "b is missing"
    damages = {"files": {"a": 3}}, {"files": {"a": ["x", "0"]}}
    for damaged in ("{", *(json.dumps({**manifest._MARK, **d}) for d in damages), "[" * 100_000):
        (tmp_path / manifest.NAME).write_text(damaged)
        with pytest.raises(ValueError, match="damaged"):
            manifest.read(tmp_path)
    (tmp_path / manifest.NAME).write_text(json.dumps({"files": {"a": [1, "0"]}}))
    assert manifest.read(tmp_path) == {"a": (1, "0")}  # as the first ones were
    others: list[Any] = [[], {"files": {"a": "md5"}}, {"version": 1, "files": {"a": [1, "0"]}}, {}]
    for other in others:
        (tmp_path / manifest.NAME).write_text(json.dumps(other))
        assert manifest.read(tmp_path) is None
    (tmp_path / manifest.NAME).unlink()
    assert manifest.read(tmp_path) is None
