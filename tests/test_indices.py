"""data/megatron_indices.py, data/cached.py: indices in data.cache are whole, or are made anew."""

import io
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from megatron.core.datasets import gpt_dataset
from test_indexed import write

from nemo_chameleon import Mixture
from nemo_chameleon.config import load_config
from nemo_chameleon.config.data import DomainConfig
from nemo_chameleon.config.schema import Config
from nemo_chameleon.data import cached, megatron_indices
from nemo_chameleon.data.blend import training_dataset, validation_datasets
from nemo_chameleon.data.indexed import open_indexed
from nemo_chameleon.distributed.processes import process_group
from nemo_chameleon.utils import manifest
from nemo_chameleon.utils.errors import UserError
from ranks import on_ranks


def drawn(config: Config, seed: int = 5) -> list[list[int]]:
    """Build both sets of a run, and return the samples of the first one."""
    domains = open_indexed(config.data.domains, config.data.split)
    mixture = Mixture.uniform(domains)
    dataset = training_dataset(config.data, domains, mixture, samples=20, seq_length=32, seed=seed)
    validation = validation_datasets(config.data, domains, seq_length=32, seed=seed)
    assert all(len(samples) for samples in validation.values())
    return [dataset[index]["tokens"].tolist() for index in range(20)]


def folders(config: Config) -> list[Path]:
    """Return what data.cache has of Megatron's indices."""
    return sorted((Path(config.data.cache) / megatron_indices.FOLDER).iterdir())


def training(config: Config) -> Path:
    """Return the folder of the training set."""
    return next(path for path in folders(config) if [*path.glob("*BlendedDataset*")])


def rewrite_manifest(folder: Path) -> None:
    """Do what somebody does who may write the cache and wants to be believed."""
    names = [path.name for path in folder.iterdir() if path.name != manifest.NAME]
    manifest.write(folder, manifest.entries_of(folder, names))


class Evil:
    """A pickle of it leaves a file in the current folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("pwned",))


def pickled(folder: Path, file: Path) -> None:
    """Replace an array by a pickle that runs code."""
    file.write_bytes(pickle.dumps(Evil()))
    rewrite_manifest(folder)


def of_objects(folder: Path, file: Path) -> None:
    """Replace an array by one of Python objects."""
    stream = io.BytesIO()
    np.save(stream, np.array([Evil()], dtype=object), allow_pickle=True)
    file.write_bytes(stream.getvalue())
    rewrite_manifest(folder)


def foreign(folder: Path, file: Path) -> None:
    """Replace an array by another of the same size."""
    np.save(file, np.load(file)[::-1])


def other_type(folder: Path, file: Path) -> None:
    """Replace an array by one of the same numbers in another type."""
    np.save(file, np.load(file).astype(np.float64))


def one_bit(folder: Path, file: Path) -> None:
    """Change one bit of the last byte."""
    contents = bytearray(file.read_bytes())
    contents[-1] ^= 1
    file.write_bytes(contents)


def missing(folder: Path, file: Path) -> None:
    """Remove a file."""
    file.unlink()


def as_link(folder: Path, file: Path) -> None:
    """Replace the folder by a link to nothing."""
    shutil.rmtree(folder)
    folder.symlink_to("nowhere")


def as_file(folder: Path, file: Path) -> None:
    """Replace the folder by a file."""
    shutil.rmtree(folder)
    folder.write_text("")


DAMAGES: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "empty": (lambda folder, file: file.write_bytes(b""), "has 0 bytes instead of"),
    "cut": (lambda folder, file: os.truncate(file, 200), "has 200 bytes instead of"),
    "zeroed": (
        lambda folder, file: file.write_bytes(bytes(file.stat().st_size)),
        "the contents of .*shuffle_index.npy are not what was written",
    ),
    "one bit": (one_bit, "are not what was written"),
    "foreign": (foreign, "are not what was written"),
    "other type": (other_type, "bytes instead of"),
    "missing": (missing, "shuffle_index.npy is missing"),
    "description": (
        lambda folder, file: missing(folder, next(folder.glob("*description.txt"))),
        "description.txt is missing",
    ),
    "further array": (
        lambda folder, file: (folder / "x.npy").write_bytes(b""),
        "x.npy was not written with it",
    ),
    "no manifest": (lambda folder, file: (folder / manifest.NAME).unlink(), "json is missing"),
    "manifest cut": (lambda folder, file: os.truncate(folder / manifest.NAME, 50), "is damaged"),
    "pickle": (pickled, "is not an array"),
    "objects": (of_objects, "has Python objects"),
    "link": (as_link, "it is not a folder"),
    "file": (as_file, "it is not a folder"),
}


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_made_anew(
    config: Config,
    damage: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """A folder that is not what was written is named and kept; the run draws what it drew."""
    monkeypatch.chdir(tmp_path)
    before = drawn(config)
    folder, whole = training(config), folders(config)
    do, says = DAMAGES[damage]
    do(folder, sorted(folder.glob("*GPTDataset*shuffle_index.npy"))[0])
    assert drawn(config) == before
    assert not Path("pwned").exists()
    (aside,) = set(folders(config)) - set(whole)
    assert aside.name.startswith(folder.name) and aside.suffix == ".damaged"
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if "damaged" in line]
    assert str(folder) in warning and aside.name in warning
    assert re.search(says, warning), warning
    assert drawn(config) == before
    assert "damaged" not in capsys.readouterr().out  # what was made anew is whole


@pytest.mark.usefixtures("alone")
def test_what_is_whole_is_only_read(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second start builds nothing, in particular not within a folder that has its manifest."""
    drawn(config)
    before = folders(config)
    seen = {path: path.stat().st_mtime_ns for folder in before for path in folder.iterdir()}
    monkeypatch.setattr(cached, "begin", None)
    drawn(config)
    assert folders(config) == before
    for folder in before:
        for path in folder.iterdir():
            assert path.stat().st_mtime_ns == seen.pop(path)
        entries = manifest.read(folder)
        assert entries and {path.name for path in folder.iterdir()} == {*entries, manifest.NAME}
    assert not seen


@pytest.mark.usefixtures("alone")
def test_all_that_decides_the_indices(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Other seeds, tokens, ends of documents and versions of Megatron get other indices."""
    config.data.vocab_size, config.data.tokenizer = 1000, None
    prefix = tmp_path / "moved"
    tokens = np.arange(900) % 1000

    def cut(*ends: int) -> list[list[int]]:
        return [part.tolist() for part in np.split(tokens, ends)]

    config.data.domains["code"] = DomainConfig(write(prefix, cut(300, 600)))
    counts = []
    for change in ("nothing", "ends", "tokens", "seed", "version"):
        if change in ("ends", "tokens"):
            tokens[0] = change == "tokens"
            write(prefix, cut(200, 600))
        if change == "version":
            monkeypatch.setattr("megatron.core.__version__", "0.99")
        drawn(config, seed=6 if change == "seed" else 5)
        counts.append(len(folders(config)))
    assert counts == [2, 4, 6, 8, 10]


@pytest.mark.usefixtures("alone")
def test_another_job_may_be_faster(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two jobs that build the same at once, the first one to finish is used by both."""
    finish, made = cached.finish, []

    def slowly(beside: Path, folder: Path) -> None:
        monkeypatch.setattr(cached, "finish", finish)
        drawn(config)
        made.append(folder.stat().st_ino)
        finish(beside, folder)
        assert folder.stat().st_ino == made[0]

    monkeypatch.setattr(cached, "finish", slowly)
    drawn(config)
    assert made
    assert len(folders(config)) == 2


@pytest.mark.usefixtures("alone")
def test_a_full_disk(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said in one line, nothing is left behind, and the next start goes well."""
    save = np.save

    def full(*arguments: Any, **settings: Any) -> None:
        save(*arguments, **settings)
        raise OSError("1024 requested and 512 written")

    with monkeypatch.context() as patched:
        patched.setattr(np, "save", full)
        with pytest.raises(UserError, match=r"512 written; make space there, or set another data"):
            drawn(config)
    assert not folders(config)
    drawn(config)
    assert len(folders(config)) == 2


@pytest.mark.usefixtures("alone")
def test_a_cache_that_cannot_be_made(config: Config, tmp_path: Path) -> None:
    """The error names the folder and the key; a link to a folder is a folder."""
    (tmp_path / "file").touch()
    config.data.cache = str(tmp_path / "file" / "cache")
    with pytest.raises(UserError, match=r"file/cache/indices.* set another data\.cache"):
        drawn(config)
    (tmp_path / "elsewhere").mkdir()
    config.data.cache = str(tmp_path / "link")
    Path(config.data.cache).symlink_to("elsewhere")
    assert drawn(config) == drawn(config)
    assert len([*(tmp_path / "elsewhere" / megatron_indices.FOLDER).iterdir()]) == 2


def test_what_killed_jobs_left(tmp_path: Path) -> None:
    """Unfinished folders in which nothing was written for a day are removed, and nothing else."""
    day = tmp_path.stat().st_mtime - 2 * 24 * 3600
    for name in ("a.0123abcd.tmp", "b.0123abcd.tmp", "c.0123abcd.damaged", "mine.tmp", "d"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.npy").touch()
        os.utime(tmp_path / name / "x.npy", (day, day))
        os.utime(tmp_path / name, (day, day))
    (tmp_path / "b.0123abcd.tmp" / "y.npy").touch()
    os.utime(tmp_path / "b.0123abcd.tmp", (day, day))
    beside = cached.begin(tmp_path / "e")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"b.0123abcd.tmp", "c.0123abcd.damaged", "mine.tmp", "d", beside.name}


def both_sets(file: str) -> tuple[list[list[int]], int]:
    """Draw on a rank, and count the indices that this rank has built."""
    built = []
    build = gpt_dataset._build_document_index

    def counted(*arguments: Any) -> Any:
        built.append(arguments)
        return build(*arguments)

    gpt_dataset._build_document_index = counted
    try:
        with process_group():
            return drawn(load_config(Path(file))), len(built)
    finally:
        gpt_dataset._build_document_index = build


def test_ranks_load_what_the_first_one_built(config_file: Path) -> None:
    """One rank builds, also where a domain has several datasets; all draw the same samples."""
    part = write(config_file.with_name("part"), [[i % 500] * 40 for i in range(50)])
    settings = yaml.safe_load(config_file.read_text())
    code = settings["data"]["domains"]["code"]
    for path in (code["path"], [code["path"], part]):
        code["path"] = path
        config_file.write_text(yaml.safe_dump(settings))
        (first, built), (second, none) = on_ranks(2, both_sets, str(config_file))
        assert first == second
        assert built and not none
        (again, nothing), _ = on_ranks(2, both_sets, str(config_file))
        assert again == first and not nothing
