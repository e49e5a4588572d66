"""models/identity.py: what differs is named, and a checkpoint is what it holds, not its path."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemo_chameleon.data.kinds import kind_of
from nemo_chameleon.models.content import digests_of, files_digest
from nemo_chameleon.models.identity import START, START_DIGEST, require_same
from nemo_chameleon.train.run import TrainingRun
from nemo_chameleon.utils.errors import UserError


def differs(made: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Return the error of two identities; None if they are the same."""
    try:
        require_same(made, now, "it", "the run", "set it back")
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("before", "now", "says"),
    [
        ([["a", "1"]], [["a", "1"], ["b", "2"]], "other data: 'b' is new; set it back"),
        ([["a", "1"], ["b", "2"]], [["a", "1"]], "'b' is gone"),
        ([["a", "1"], ["b", "2"]], [["a", "1"], ["b", "3"]], "the data of 'b' has changed"),
        ([["a", 0.5]], [["a", 0.25]], "'a' had 0.5, but the run has 0.25"),
        ([["a", 1], ["b", 2]], [["b", 2], ["a", 1]], "the order has changed: 'a' was at"),
        (3, 4, "it was made with data = 3, but the run has 4: set it back"),
        (None, [["a", 1]], "data = None"),
        ([["a", 1]], [["a", 1]], None),
    ],
)
def test_the_domain_that_differs_is_named(before: Any, now: Any, says: str | None) -> None:
    """An error names the setting, and in a list of domains the one that differs."""
    error = differs({"data": before}, {"data": now})
    assert (error is None) if says is None else says in (error or "")


def test_many_differences_are_short() -> None:
    """Of many domains that differ, three are named and the others counted."""
    error = differs({"data": [[f"d{i}", "x"] for i in range(99)]}, {"data": []})
    assert error is not None
    assert "'d0' is gone, 'd1' is gone, 'd2' is gone, 96 more differences" in error


def test_a_checkpoint_is_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another spelling of a path, a link and a copy are the same start; other files are not."""
    monkeypatch.chdir(tmp_path)
    for name, text in (("a", "weights"), ("copy", "weights"), ("other", "others")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.distcp").write_text(text)
    (tmp_path / "link").symlink_to("a")

    def start(place: str | None) -> dict[str, Any]:
        return {START: place, START_DIGEST: None if place is None else digests_of(Path(place))}

    for same in ("a", "a/", "./a", str(tmp_path / "a"), "link", "copy"):
        assert differs(start("a"), start(same)) is None
    for another in ("other", "gone", None):
        assert f"with {START} = a, but" in (differs(start("a"), start(another)) or "")
    # Earlier versions recorded the digest of the files alone.
    assert differs({START: "a", START_DIGEST: files_digest(Path("a"))}, start("copy")) is None
    assert differs({START: "a", START_DIGEST: files_digest(Path("a"))}, start("other"))
    # Checkpoints of earlier versions have no digest, and their paths still say enough.
    assert differs({START: "a"}, start(str(tmp_path / "a"))) is None
    assert differs({START: "a"}, start("copy")) is not None
    assert differs({START: "gone"}, start("gone")) is None


@pytest.mark.parametrize(
    ("section", "key", "value", "says"),
    [
        ("model", "hidden_size", 64, r"model\.hidden_size = 32, but the run has 64"),
        ("optimizer", "weight_decay", 0.5, r"optimizer\.weight_decay = .* but the run has 0\.5"),
        ("train", "precision", "bf16", r"train\.precision = torch.float32, .* torch\.bfloat16"),
        ("train", "train_iters", 7, r"train\.train_iters = 6, but the run has 7"),
        ("train", "global_batch_size", 4, r"train\.global_batch_size = 8, but the run has 4"),
        ("train", "seed", 5, r"train\.seed = .* but the run has 5"),
        ("data", "split", "70,30,0", r"data\.split = 80,20,0, but the run has 70,30,0"),
        ("data", "vocab_size", 600, r"vocabulary size = 512, but the run has 600"),
        ("data", "tokenizer", "other.json", r"made with vocabulary = "),
        ("checkpoint", "pretrained_checkpoint", "x", r"checkpoint\.pretrained_checkpoint = None"),
    ],
)
def test_every_setting_that_decides_a_run_is_compared(
    job: TrainingRun, tmp_path: Path, section: str, key: str, value: Any, says: str
) -> None:
    """A checkpoint that was made with another one is refused, and the key is named."""
    (tmp_path / "state.json").write_text(json.dumps({"identity": job.identity()}))
    assert job.state_at(tmp_path)["identity"] == job.identity()
    if key == "tokenizer":
        text = Path(str(job.config.data.tokenizer)).read_text()
        (tmp_path / value).write_text(text.replace("<|endoftext|>", "<|end|>"))
        value = str(tmp_path / value)
    setattr(getattr(job.config, section), key, value)
    with pytest.raises(UserError, match=says):
        job.state_at(tmp_path)


def test_a_run_knows_what_it_started_from(job: TrainingRun, tmp_path: Path) -> None:
    """A copy of checkpoint.pretrained_checkpoint is the same start; other weights are refused."""
    for name, text in (("a", "weights"), ("copy", "weights"), ("other", "others")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.distcp").write_text(text)
    job.config.checkpoint.pretrained_checkpoint = str(tmp_path / "a")
    (tmp_path / "state.json").write_text(json.dumps({"identity": job.identity()}))
    for name in ("copy", "other"):
        job.config.checkpoint.pretrained_checkpoint = str(tmp_path / name)
        again = replace(job)  # a digest is computed once
        if name == "copy":
            assert again.state_at(tmp_path)
            continue
        with pytest.raises(UserError, match=rf"checkpoint\.pretrained_checkpoint = {tmp_path}/a,"):
            again.state_at(tmp_path)


def test_data_that_changed_are_refused(job: TrainingRun, tmp_path: Path) -> None:
    """A checkpoint that was made with other data of a domain is refused, and the domain is named.

    Finetuning data also have settings that decide the order of their samples.
    """
    (tmp_path / "state.json").write_text(json.dumps({"identity": job.identity()}))
    changed: Any = replace(job.domains["code"], fingerprint="x")  # type: ignore[type-var]
    with pytest.raises(UserError, match=r"other data\.domains: the data of 'code' has changed"):
        replace(job, domains={**job.domains, "code": changed}).state_at(tmp_path)
    job.config.data.dataset = "sft"
    keys = {f"data.{key}" for key in kind_of(job.config.data).order_settings}
    assert {"data.packing", "data.on_too_long", "data.unit"} <= keys <= set(job.identity())
