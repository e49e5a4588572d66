"""provider/places.py: what a run could not write in the end is refused before it begins."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from nemo_chameleon import provider
from nemo_chameleon.config.schema import Config
from nemo_chameleon.models import tracker
from nemo_chameleon.provider.preflight import inspect
from nemo_chameleon.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("alone")


def on_login_node(config: Config) -> None:
    """Do what `nemo-chameleon check` does."""
    inspect(config, 1, 1)


@pytest.mark.parametrize("look", [provider.prepare, on_login_node])
@pytest.mark.parametrize(
    ("made", "says"),
    [
        ("out/chameleon", r"^output=.*chameleon is a file, but must be a folder; remove it"),
        ("out/chameleon/tensorboard", r"tensorboard is a file, but must be a folder"),
        ("out/chameleon/result.json/", r"result\.json is a folder"),
        ("out/chameleon/mixture.json/", r"mixture\.json is a folder"),
        ("out/chameleon/latest_checkpointed_iteration.txt/", r"iteration\.txt is a folder"),
        ("out/proxy", r"^output=.*proxy is a file, but must be a folder"),
        ("out/proxy/result.json/", r"proxy/result\.json is a folder"),
        ("out/cache", r"^data\.cache=.*cache is a file, .*; set data\.cache to another"),
    ],
)
def test_what_is_in_the_way(
    config: Config, tmp_path: Path, made: str, says: str, look: object
) -> None:
    """Files in place of folders, and folders in place of files, are named with their key."""
    path = tmp_path / made
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if made.endswith("/") else path.write_text("")
    with pytest.raises(UserError, match=says):
        look(config)  # type: ignore[operator]


@pytest.mark.parametrize("look", [provider.prepare, on_login_node])
def test_names_that_are_too_long(config: Config, tmp_path: Path, look: object) -> None:
    """The embeddings have a longer name than the mixture file, and both are written aside first."""
    config.chameleon.file = str(tmp_path / f"{'m' * 232}.json")
    with pytest.raises(UserError, match=r"safetensors has a name of more than 242 bytes"):
        look(config)  # type: ignore[operator]
    config.chameleon.file = str(tmp_path / f"{'m' * 229}.json")
    look(config)  # type: ignore[operator]


@pytest.mark.parametrize("look", [provider.prepare, on_login_node])
def test_a_disk_without_room(config: Config, look: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that cannot hold one checkpoint is refused, unless the last one is there already."""
    Path(config.output).mkdir()
    usage = SimpleNamespace(free=10**4)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"^output=.*a checkpoint of chameleon has at least"):
        look(config)  # type: ignore[operator]
    for name in ("chameleon", "proxy"):
        left = Path(config.output) / name / "iter_0000003.tmp" / "__0_0.distcp"
        left.parent.mkdir(parents=True)
        left.touch()
        os.truncate(left, 10**9)
    look(config)  # type: ignore[operator]
    for left in Path(config.output).glob("*/*.tmp"):
        shutil.rmtree(left)
    monkeypatch.setattr(tracker, "saved", lambda folder: [folder / "iter_0000006"])
    for name in ("chameleon", "proxy"):
        (Path(config.output) / name).mkdir(exist_ok=True)
    if look is on_login_node:
        on_login_node(config)


def test_a_login_node_leaves_no_trace(config: Config, tmp_path: Path) -> None:
    """Nothing is written there, and a job leaves folders alone."""
    on_login_node(config)
    assert not Path(config.output).exists()
    provider.prepare(config)
    assert [path for path in Path(config.output).rglob("*") if path.is_file()] == []
    assert not (tmp_path / "out" / "mixture.partial").exists()


@pytest.mark.parametrize("look", [provider.prepare, on_login_node])
@pytest.mark.parametrize(
    ("folder", "says"),
    [
        ("chameleon", r"^output=.*out/chameleon may not be written to; remove it, or set output"),
        ("cache", r"^data\.cache=.*out/cache may not be written to; set data\.cache to another"),
        ("proxy", r"^output=.*out/proxy may not be written to; remove it, or set output"),
    ],
)
def test_folders_of_somebody_else(
    config: Config, monkeypatch: pytest.MonkeyPatch, folder: str, says: str, look: object
) -> None:
    """A folder that this user may not write to is named with its key; root may write to all."""
    path, access = Path(config.output) / folder, os.access
    path.mkdir(parents=True)
    monkeypatch.setattr(
        os, "access", lambda place, mode: Path(place) != path and access(place, mode)
    )
    with pytest.raises(UserError, match=says):
        look(config)  # type: ignore[operator]


@pytest.mark.parametrize("key", ["output", "cache", "file"])
def test_what_refuses_to_be_written(config: Config, key: str) -> None:
    """A place where the system refuses all files is found by trying, whatever the rights say."""
    section = {"output": config, "cache": config.data, "file": config.chameleon}[key]
    setattr(section, key, "/proc/nothing/m.json")
    if key == "output":
        config.data.cache = config.chameleon.file = "/tmp/elsewhere.json"
    with pytest.raises(UserError, match=rf"{key}=/proc/nothing/m.json"):
        provider.prepare(config)
