"""distributed/lease.py: one job at a time owns what a run writes."""

import copy
import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

import ranks
from nemo_chameleon.config.schema import Config
from nemo_chameleon.distributed import lease, lease_file, lease_owner
from nemo_chameleon.distributed.lease import Lease
from nemo_chameleon.distributed.lease_owner import Owner
from nemo_chameleon.mixture.embeddings_file import embeddings_file
from nemo_chameleon.models import tracker
from nemo_chameleon.provider import proxy
from nemo_chameleon.provider.preflight import prepare
from nemo_chameleon.provider.proxy import compute_mixture
from nemo_chameleon.train import trainer
from nemo_chameleon.train.run import TrainingRun
from nemo_chameleon.utils.errors import UserError
from project import RECIPE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "run.lease"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let seconds pass as tenths of seconds."""
    monkeypatch.setattr(lease, "PERIOD", 0.1)
    monkeypatch.setattr(lease, "LIFETIME", 1.0)
    monkeypatch.setattr(lease, "_SETTLING", 0.2)


def until(happened: Callable[[], bool]) -> bool:
    """Wait for something for half a minute, and return whether it has happened."""
    deadline = time.monotonic() + 30
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.01)
    return happened()


def make(path: Path) -> Lease:
    return Lease(path, "out/run", "set output to another folder")


def left_by(owner: Owner, path: Path, age: float = 0.0) -> None:
    """Write a lease as an owner left it, some seconds ago."""
    path.parent.mkdir(exist_ok=True)
    path.touch()
    owner = dataclasses.replace(owner, inode=path.stat().st_ino)
    path.write_text(json.dumps(dataclasses.asdict(owner)) + "\n")
    os.utime(path, (time.time() - age,) * 2)


def elsewhere(**facts: Any) -> Owner:
    """Return an owner on another node."""
    return dataclasses.replace(Owner.here(), **{"host": "n7", "token": "other", **facts})


@pytest.fixture
def another() -> Iterator[int]:
    """The number of another process that runs on this node."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.communicate(b"\n")


def running(process: int) -> Owner:
    started = lease_owner._state_and_start(process)[1]
    return dataclasses.replace(Owner.here(), process=process, started=started, token="other")


def test_a_lease_is_taken_renewed_and_given_up(path: Path, quick: None) -> None:
    """The file names this process while the lease is held; its time is set again and again."""
    mine = make(path)
    mine.take()
    assert json.loads(path.read_text())["process"] == os.getpid()
    assert [file.name for file in path.parent.iterdir()] == ["run.lease"]
    os.utime(path, (1, 1))
    deadline = time.monotonic() + 30
    while path.stat().st_mtime == 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert time.time() - path.stat().st_mtime < 60
    mine.require()
    mine.release()
    assert not path.exists()


def test_a_process_that_lives_is_named(path: Path, another: int) -> None:
    """A process of this node keeps its lease for as long as it lives, however old the lease is."""
    owner = dataclasses.replace(running(another), job="77", since="2026-01-02 03:04:05")
    left_by(owner, path, age=1e6)
    before = path.read_bytes()
    with pytest.raises(UserError) as error:
        make(path).take()
    assert str(error.value) == (
        f"out/run is in use by process {another} on {owner.host}, SLURM job 77, since 2026-01-02 "
        "03:04:05: wait until that has ended, or set output to another folder"
    )
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["run.lease"]


@pytest.mark.parametrize("what", ["ended", "number used again"])
def test_a_process_that_has_ended(path: Path, another: int, what: str) -> None:
    """The lease of an ended process of this node is taken over without waiting.

    A later process with the same number does not keep it.
    """
    owner = dataclasses.replace(running(another), started="1")
    if what == "ended":
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        owner = dataclasses.replace(owner, process=ended.pid)
    left_by(owner, path)
    begun = time.monotonic()
    mine = make(path)
    mine.take()
    assert time.monotonic() - begun < 5
    mine.require()
    mine.release()


@pytest.mark.parametrize("fact", ["host", "boot", "namespace"])
def test_processes_of_other_nodes_are_not_looked_up(fact: str) -> None:
    """Process numbers mean nothing on another node, after a restart or in another container."""
    assert dataclasses.replace(Owner.here(), process=1 << 29).has_ended() is True
    other: dict[str, Any] = {fact: "x"}
    assert dataclasses.replace(Owner.here(), process=1 << 29, **other).has_ended() is None


@pytest.mark.parametrize("contents", ["other node", "", "{}", "\x00\x00"])
def test_a_lease_that_nobody_renews(path: Path, quick: None, contents: str) -> None:
    """A lease of another node is watched for a minute, and then taken over; so is half of one."""
    left_by(elsewhere(), path)
    if contents != "other node":
        path.write_text(contents)
    begun = time.monotonic()
    mine = make(path)
    mine.take()
    assert time.monotonic() - begun > lease.LIFETIME * 0.9
    mine.require()
    mine.release()


def test_a_lease_that_is_renewed_elsewhere(path: Path, quick: None) -> None:
    """A process of another node that renews its lease is named, even if it was late."""
    left_by(elsewhere(), path, age=3600)

    def renew() -> None:
        time.sleep(0.15)
        os.utime(path)

    renewing = threading.Thread(target=renew)
    renewing.start()
    with pytest.raises(UserError, match=r"out/run is in use by process \d+ on n7 since "):
        make(path).take()
    renewing.join()


@pytest.mark.parametrize("clock", [-7200, 7200])
def test_clocks_of_nodes_are_not_compared(
    path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, clock: float
) -> None:
    """The age of a lease does not depend on this node's clock."""
    left_by(elsewhere(), path)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + clock)
    begun = time.monotonic()
    mine = make(path)
    mine.take()
    assert 0.9 * lease.LIFETIME < time.monotonic() - begun < 10 * lease.LIFETIME
    mine.release()


def test_one_of_many_takes_it_over(path: Path, quick: None) -> None:
    """Of several that find the same ended lease one gets it, and the others are refused."""
    for _ in range(20):
        left_by(dataclasses.replace(Owner.here(), process=1 << 29, token="ended"), path)
        several = [make(path) for _ in range(8)]

        def taken(one: Lease) -> bool:
            try:
                one.take()
            except UserError:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(taken, several))
        owners = [one for one, has in zip(several, results, strict=True) if has]
        still = [one for one in owners if one._token in path.read_text()]
        assert len(still) == 1
        for one in several:
            one._over.set()
            if one is still[0]:
                one.require()
            elif one in owners:
                with pytest.raises(UserError, match="is no longer this run's"):
                    one.require()
        for one in owners:
            one.release()
        assert list(path.parent.iterdir()) == []


def test_a_quicker_process_keeps_what_it_took(path: Path) -> None:
    """A process that comes late removes nobody else's lease."""
    old, new = elsewhere(token="old"), elsewhere(token="new")
    left_by(old, path)
    seen = lease_file.look(path)
    assert seen is not None
    left_by(new, path)
    make(path)._remove(seen)
    assert json.loads(path.read_text())["token"] == "new"

    # It may also be replaced between the last look and the renaming.
    looks = iter([seen])
    look = lease_file.look
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease, "look", lambda file: next(looks, None) or look(file))
        make(path)._remove(seen)
    assert json.loads(path.read_text())["token"] == "new"
    assert [file.name for file in path.parent.iterdir()] == ["run.lease"]


def test_an_owner_that_was_suspended_looks_twice(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may just have found the lease ended, and takes it over a moment later."""
    mine = make(path)
    mine.take()
    mine.require()
    mine._renewed -= lease.LIFETIME
    monkeypatch.setattr(time, "sleep", lambda seconds: left_by(elsewhere(), path))
    with pytest.raises(UserError, match=r"is no longer this run's: .* on n7 .* has it"):
        mine.require()
    mine.release()
    assert json.loads(path.read_text())["token"] == "other"


def test_a_lost_lease_is_made_again(
    path: Path, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that is healthy goes on when the file of its lease was removed."""
    mine = make(path)
    mine.take()
    path.unlink()
    mine.require()
    owner = Owner.read(path.read_text())
    assert owner is not None
    assert owner.process == os.getpid()
    assert owner.inode == path.stat().st_ino
    assert until(lambda: f"{path} was lost, and has been made again" in caplog.text)
    assert until(lambda: [file.name for file in path.parent.iterdir()] == ["run.lease"])
    mine.release()
    assert not path.exists()


def test_a_lease_that_another_job_took_is_not_made_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After another job has had the lease, its end does not give the lease back."""
    monkeypatch.setattr(lease, "LIFETIME", 1.0)  # for the error alone: nothing renews in this time
    mine = make(path)
    mine.take()
    left_by(elsewhere(), path)
    mine._renew()
    path.unlink()
    with pytest.raises(UserError, match=rf"^out/run may be another run's by now: {path} is gone"):
        mine.require()
    assert not path.exists()
    mine.release()


def test_an_owner_that_was_suspended_makes_no_lease(path: Path, quick: None) -> None:
    """While it was suspended another job may have had the lease and ended."""
    mine = make(path)
    mine.take()
    mine._over.set()
    assert mine._thread is not None
    mine._thread.join()
    path.unlink()
    mine._renewed -= lease.LIFETIME
    with pytest.raises(UserError, match="may be another run's by now"):
        mine.require()
    assert not path.exists()
    mine.release()


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
def test_a_file_server_that_fails_for_a_while(
    path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A lease that cannot be read is looked at again; one line says so if this lasts."""
    mine = make(path)
    mine.take()
    looks = iter(range(3))
    real = Path.open

    def fail(file: Path, *of: Any, **more: Any) -> Any:
        if file == path and next(looks, None) is not None:
            raise OSError(number, os.strerror(number), str(file))
        return real(file, *of, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fail)
        mine.require()
    before = path.stat().st_ino
    looks = iter(range(1 << 30))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fail)
        with pytest.raises(UserError, match=f"^out/run may be another run's by now: {path} "):
            mine.require()
    assert path.stat().st_ino == before
    mine.release()


def test_a_copied_folder(path: Path, quick: None, another: int, tmp_path: Path) -> None:
    """The lease in a copy of a folder blocks nobody for longer than a lease of another node."""
    left_by(running(another), path)
    copied = tmp_path / "copy" / "run.lease"
    shutil.copytree(path.parent, copied.parent)
    mine = make(copied)
    mine.take()
    mine.require()
    mine.release()
    with pytest.raises(UserError, match=f"in use by process {another} "):
        make(path).take()


def test_a_lease_of_an_earlier_version(path: Path, another: int) -> None:
    """A lease without the number of its file is that of its process."""
    left_by(running(another), path, age=1e6)
    facts = json.loads(path.read_text())
    del facts["inode"]
    path.write_text(json.dumps(facts))
    with pytest.raises(UserError, match=f"in use by process {another} "):
        make(path).take()


def test_a_lease_is_renewed_while_a_library_holds_the_lock(
    path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When no thread can renew the lease, a helper does, whatever signals the job gets."""
    monkeypatch.setattr(Lease, "_keep_renewing", lambda self: None)
    mine = make(path)
    mine.take()
    assert mine._helper is not None
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGQUIT):
        mine._helper.send_signal(number)
    for _ in range(2):
        os.utime(path, (1, 1))
        assert until(lambda: path.stat().st_mtime > 1)
    assert mine._helper.poll() is None
    mine.release()
    assert mine._helper.returncode == -signal.SIGKILL


OWNER = """\
import pathlib, sys
from nemo_chameleon.distributed import lease
lease.PERIOD = 0.1
mine = lease.Lease(pathlib.Path(sys.argv[1]), "out", "wait")
mine.take()
print(mine._helper.pid, flush=True)
input()
"""


def test_the_helper_ends_with_the_owner(path: Path) -> None:
    """The lease of a process that was killed is not renewed any more."""
    command = [sys.executable, "-c", OWNER, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        helper = psutil.Process(int(process.stdout.readline()))
        assert helper.is_running()
        process.kill()
    assert until(lambda: not helper.is_running() or helper.status() == psutil.STATUS_ZOMBIE)


def test_file_systems_without_hard_links(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are no hard links, the file is created if there is none."""

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    mine = make(path)
    mine.take()
    with pytest.raises(UserError, match=f"in use by process {os.getpid()} on"):
        make(path).take()
    mine.require()
    mine.release()
    assert not path.exists()


@pytest.mark.usefixtures("alone")
def test_a_run_that_lost_its_lease_writes_nothing(
    job: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose lease another process took over stops before its next checkpoint."""
    job.config.checkpoint.save_interval = 2
    file, other = job.directory / "run.lease", elsewhere()
    step = trainer.Trainer.step

    def suspended(self: trainer.Trainer, batches: object) -> float | None:
        if self.iteration == 3:
            left_by(other, file)
        return step(self, batches)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer.Trainer, "step", suspended)
    with pytest.raises(
        UserError, match=rf"{job.directory} is no longer .* on n7 .* writes nothing"
    ):
        trainer.train(job)
    assert tracker.newest(job.directory) == job.directory / "iter_0000002"
    assert not (job.directory / "iter_0000004.tmp").exists()
    assert json.loads(file.read_text())["token"] == "other"


@pytest.mark.usefixtures("alone")
def test_a_lease_that_is_lost_while_a_checkpoint_is_written(
    job: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint does not get its name if the lease is lost while its files are written."""
    from nemo_chameleon.models import whole

    job.config.checkpoint.save_interval = 2
    seal = whole.seal

    def slowly(folder: Path) -> None:
        seal(folder)
        left_by(elsewhere(), job.directory / "run.lease")

    monkeypatch.setattr(whole, "seal", slowly)
    with pytest.raises(UserError, match="is no longer this run's"):
        trainer.train(job)
    assert tracker.newest(job.directory) is None


@pytest.mark.usefixtures("alone")
def test_a_mixture_that_another_job_computes(config: Config, another: int) -> None:
    """A mixture file that another job computes is refused before a proxy is trained."""
    prepared = prepare(config)
    file = Path(config.chameleon.file)
    left_by(running(another), file.with_name(f"{file.name}.lease"))
    with pytest.raises(UserError, match=rf"^chameleon.file={file} is in use by process {another} "):
        compute_mixture(prepared)
    assert not (Path(config.output) / "proxy").exists()


@pytest.mark.usefixtures("alone")
def test_a_mixture_that_another_job_has_computed(config: Config, tmp_path: Path) -> None:
    """A job that looked for the mixture before another one finished uses that one's."""
    late = copy.deepcopy(config)
    late.output = str(tmp_path / "late")
    late.chameleon.file = config.chameleon.file
    prepared = prepare(late)
    mixture = compute_mixture(prepare(config))
    file = Path(config.chameleon.file)
    written = file.stat().st_mtime_ns
    assert compute_mixture(prepared).weights == mixture.weights
    assert file.stat().st_mtime_ns == written
    assert not (tmp_path / "late" / "proxy").exists()
    assert not file.with_name(f"{file.name}.lease").exists()


@pytest.mark.usefixtures("alone")
def test_a_result_is_not_written_without_the_lease(
    job: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that lost its lease after its last checkpoint writes no result.json."""

    def slowly(self: trainer.Trainer) -> dict[str, dict[str, float]]:
        if self.iteration == 6:
            left_by(elsewhere(), job.directory / "run.lease")
        return {}

    monkeypatch.setattr(trainer.Trainer, "_evaluate", slowly)
    with pytest.raises(UserError, match="is no longer this run's"):
        trainer.train(job)
    assert not (job.directory / "result.json").exists()


@pytest.mark.usefixtures("alone")
def test_a_mixture_is_not_written_without_the_lease(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that lost the lease while it embedded writes no mixture file and no embeddings."""
    file = Path(config.chameleon.file)
    embed = proxy._embed

    def slowly(*of: Any) -> Any:
        found = embed(*of)
        left_by(elsewhere(), file.with_name(f"{file.name}.lease"))
        return found

    monkeypatch.setattr(proxy, "_embed", slowly)
    with pytest.raises(UserError, match="is no longer this run's"):
        compute_mixture(prepare(config))
    assert not file.exists()
    assert not embeddings_file(file).exists()


def test_every_rank_is_refused(config_file: Path, another: int) -> None:
    """When another process has the run's folder, all ranks end with one line."""
    folder = config_file.parent / "out" / "uniform"
    folder.mkdir(parents=True)
    left_by(running(another), folder / "run.lease")
    done = ranks.run(RECIPE, ["--config", str(config_file), "data.mixture=uniform"], 2, check=False)
    assert done.returncode != 0
    assert done.stderr.count(f"error: {folder} is in use by process {another} ") == 1
    assert "Traceback" not in done.stderr
