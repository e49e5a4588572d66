"""train/trainer.py: what a run counts and writes, and that it continues as if never stopped."""

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nemo_chameleon import Mixture, provider
from nemo_chameleon.config.data import DatasetConfig
from nemo_chameleon.models import checkpoint, tracker
from nemo_chameleon.train import report, trainer
from nemo_chameleon.train.run import TrainingRun
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.preemption import StoppedError

pytestmark = pytest.mark.usefixtures("alone")


def elsewhere(job: TrainingRun, output: Path) -> TrainingRun:
    """Return the same run in another folder."""
    config = dataclasses.replace(job.config, output=str(output))
    return dataclasses.replace(job, config=config, settings=config)


def test_result(job: TrainingRun) -> None:
    """result.json has loss, perplexity, samples and epochs of every domain, and their means."""
    result = trainer.train(job)
    assert result == json.loads((job.directory / "result.json").read_text())
    assert result["iterations"] == 6
    assert result["tokens"] == 6 * 8 * 32
    drawn = {name: domain["samples"] for name, domain in result["domains"].items()}
    assert sum(drawn.values()) == 48
    for name, weight in job.mixture.weights.items():
        assert abs(drawn[name] - 48 * weight) <= 1
        domain = result["domains"][name]
        assert domain["epochs"] == pytest.approx(drawn[name] * 32 / job.domains[name].tokens)
        assert domain["perplexity"] == pytest.approx(np.exp(domain["loss"]))
        assert 0 < domain["loss"] < 1.2 * np.log(512)
    losses = [domain["loss"] for domain in result["domains"].values()]
    assert result["macro"]["loss"] == pytest.approx(np.mean(losses))
    assert Mixture.load(job.directory / "mixture.json") == job.mixture


def test_validation_sets(job: TrainingRun, corpus: Path) -> None:
    """A validation set named like a domain replaces that domain's split; another one is added.

    Neither is drawn from.
    """
    from nemo_chameleon.data.tokenize import write_dataset
    from nemo_chameleon.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(job.config.data.tokenizer)
    texts = {"code": "def f(x):\n    return x\n" * 40, "unseen": "ab" * 500}
    alone = trainer.train(elsewhere(job, corpus.parent / "alone"))
    for name, text in texts.items():
        write_dataset([text], tokenizer, corpus.parent / f"held-{name}")
        job.config.data.validation[name] = DatasetConfig(str(corpus.parent / f"held-{name}"))
    result = trainer.train(job)
    assert set(result["validation"]) == {"unseen"}
    assert result["validation macro"] == result["validation"]["unseen"]
    domains = alone["domains"]
    for name, domain in result["domains"].items():
        assert domain["samples"] == domains[name]["samples"]
        assert (domain["loss"] == pytest.approx(domains[name]["loss"])) is (name != "code")
    losses = [domain["loss"] for domain in result["domains"].values()]
    assert result["macro"]["loss"] == pytest.approx(np.mean(losses))
    assert "unseen" in report.compare([result])


def test_training_learns(job: TrainingRun) -> None:
    """Sixty iterations lower the loss well below that of a uniform guess."""
    job.settings.train.train_iters = 60
    job.config.checkpoint.save_interval = 0
    assert trainer.train(job)["loss"] < np.log(512) - 1.0


def test_a_run_starts_from_a_pretrained_checkpoint(job: TrainingRun, tmp_path: Path) -> None:
    """With a learning rate of 0 the run has the losses of the pretrained checkpoint.

    The proxy does not start from it.
    """
    first = trainer.train(job)
    again = elsewhere(job, tmp_path / "again")
    again.config.checkpoint = dataclasses.replace(
        job.config.checkpoint, pretrained_checkpoint=str(job.directory)
    )
    again.settings.optimizer = dataclasses.replace(job.settings.optimizer, lr=0.0, min_lr=0.0)
    result = trainer.train(again)
    for name, domain in first["domains"].items():
        assert result["domains"][name]["loss"] == pytest.approx(domain["loss"], abs=1e-6)
        assert result["domains"][name]["samples"] > 0
    proxy = dataclasses.replace(again, settings=job.config.proxy)
    assert proxy.pretrained() is None
    assert "checkpoint.pretrained_checkpoint" not in proxy.identity()
    again.config.checkpoint.pretrained_checkpoint = None
    with pytest.raises(UserError, match=r"with checkpoint\.pretrained_checkpoint = "):
        trainer.train(again)


def test_pretrained_checkpoints_that_are_refused(job: TrainingRun, tmp_path: Path) -> None:
    """A pretrained checkpoint is refused if it is missing or of another model or vocabulary.

    This is known before any training.
    """
    trainer.train(job)
    job = elsewhere(job, tmp_path / "other")
    job.config.checkpoint.pretrained_checkpoint = str(tmp_path / "none")
    with pytest.raises(UserError, match=r"there is no such checkpoint"):
        provider.prepare(job.config)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="does not hold a checkpoint"):
        provider.prepare(job.config)
    job.config.checkpoint.pretrained_checkpoint = str(tmp_path / "out" / "base")
    job.settings.model.num_query_groups = 4  # as many as attention heads, which null means too
    provider.prepare(job.config)
    job.settings.model.num_query_groups = 2
    with pytest.raises(UserError, match=r"the run has 2: set model\.num_query_groups=4"):
        provider.prepare(job.config)
    job.settings.model.num_query_groups = None
    mine = job.config.data.tokenizer
    assert mine is not None
    other = json.loads(Path(mine).read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(other).replace("<|endoftext|>", "<|end|>"))
    job.config.data.tokenizer = str(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match=r"another tokenizer than .* wrote this dataset"):
        provider.prepare(job.config)
    for name, domain in job.config.data.domains.items():
        for ending in (".bin", ".idx"):  # and no stamp, as other tools write them
            shutil.copy(f"{domain.path}{ending}", tmp_path / f"{name}{ending}")
        domain.path = str(tmp_path / name)
    with pytest.raises(UserError, match=r"has another vocabulary than .*tokenizer\.json"):
        provider.prepare(job.config)
    job.config.data.tokenizer, job.config.data.vocab_size = None, 600
    with pytest.raises(UserError, match=r"needs data\.tokenizer"):
        provider.prepare(job.config)


def test_micro_batches_do_not_change_the_run(job: TrainingRun, tmp_path: Path) -> None:
    """Four micro-batches per iteration and one give the same loss, a mean over tokens."""
    in_four = trainer.train(job)
    job.settings.train.micro_batch_size = 8
    in_one = trainer.train(elsewhere(job, tmp_path / "one"))
    assert in_four["loss"] == pytest.approx(in_one["loss"], abs=1e-4)
    assert in_four["macro"]["loss"] == pytest.approx(in_one["macro"]["loss"], abs=1e-4)


def test_a_pause_comes_before_the_checkpoint_and_changes_nothing(
    job: TrainingRun, tmp_path: Path
) -> None:
    """A run that dies in a pause has no checkpoint of that iteration, so it pauses there again.

    It then ends at the loss of a run without a pause, to the last bit.
    """
    whole = trainer.train(elsewhere(job, tmp_path / "whole"))

    def die(_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.train(job, {4: die})
    newest = tracker.newest(job.directory)
    assert newest is not None
    assert newest.name == "iter_0000002"
    seen: list[Any] = []
    resumed = trainer.train(job, {4: seen.append})
    assert len(seen) == 1
    assert resumed["loss"] == whole["loss"]
    assert resumed["domains"] == whole["domains"]


def test_stopped_and_resumed_equals_never_stopped(
    job: TrainingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that dies after iteration 4 and is started again ends with the same figures."""
    whole = trainer.train(elsewhere(job, tmp_path / "whole"))
    save = checkpoint.save

    def die_after_four(directory: Path, iteration: int, *rest: Any) -> Path:
        path = save(directory, iteration, *rest)
        if iteration == 4:
            raise KeyboardInterrupt
        return path

    monkeypatch.setattr(checkpoint, "save", die_after_four)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(job)
    monkeypatch.undo()
    assert not (job.directory / "result.json").exists()
    resumed = trainer.train(job)
    assert resumed["loss"] == pytest.approx(whole["loss"], abs=1e-6)
    for name, domain in whole["domains"].items():
        assert resumed["domains"][name]["loss"] == pytest.approx(domain["loss"], abs=1e-6)
        assert resumed["domains"][name]["samples"] == domain["samples"]


def test_a_run_that_is_asked_to_stop(
    job: TrainingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After SIGUSR1 a run saves at its next log interval and ends.

    When it is started again, it ends as if never stopped.
    """
    job.config.logging.log_interval, job.config.checkpoint.save_interval = 2, 0
    whole = trainer.train(elsewhere(job, tmp_path / "whole"))
    step, before = trainer.Trainer.step, signal.getsignal(signal.SIGUSR1)

    def asked_in_the_third(self: trainer.Trainer, batches: Any) -> float | None:
        if self.iteration == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "step", asked_in_the_third)
        with pytest.raises(StoppedError, match="base: stopped at iteration 4"):
            trainer.train(job)
    assert signal.getsignal(signal.SIGUSR1) == before
    assert tracker.newest(job.directory) == job.directory / "iter_0000004"
    assert not (job.directory / "result.json").exists()
    resumed = trainer.train(job)
    assert resumed["loss"] == pytest.approx(whole["loss"], abs=1e-6)
    assert resumed["domains"] == whole["domains"]


def test_finished_run_starts_no_training(job: TrainingRun) -> None:
    """A finished run that is started again gives the same result without an iteration."""
    first, again = trainer.train(job), trainer.train(job)
    for key in ("loss", "domains", "seconds", "iterations"):
        assert again[key] == first[key]


def test_half_written_checkpoint_is_not_found(job: TrainingRun) -> None:
    """A checkpoint under its temporary name is ignored, and the one before it is used."""
    trainer.train(job)
    (job.directory / "iter_0000008.tmp").mkdir()
    found = tracker.newest(job.directory)
    assert found is not None
    assert found.name == "iter_0000006"


def test_other_order_of_samples_is_refused(job: TrainingRun) -> None:
    """A run does not continue with other weights or batches, which would repeat and skip data.

    Both are shown.
    """
    trainer.train(job)
    other = dataclasses.replace(job, mixture=Mixture.uniform(job.domains))
    with pytest.raises(UserError, match=r"other weights: 'code' had 0\.5, but the run has 0\.333"):
        trainer.train(other)
    job.config.data.on_mixture_change = "accept"
    assert trainer.train(other)["domains"]["code"]["weight"] == pytest.approx(1 / 3)
    job.settings.train.train_iters = 12
    with pytest.raises(UserError, match=r"train\.train_iters = 6, but the run has 12"):
        trainer.train(job)


def test_other_model_or_optimizer_is_refused(job: TrainingRun) -> None:
    """A checkpoint of another model or learning rate is refused, and the key is named."""
    trainer.train(job)
    for section, key, value in (("model", "num_layers", 3), ("optimizer", "lr", 2e-2)):
        before = getattr(getattr(job.settings, section), key)
        setattr(getattr(job.settings, section), key, value)
        with pytest.raises(UserError, match=f"{section}.{key} = {before}, but the run has {value}"):
            trainer.train(job)
        setattr(getattr(job.settings, section), key, before)


def test_domains_in_another_order_are_refused(job: TrainingRun) -> None:
    """A run does not continue with its domains in another order, which would draw other samples."""
    trainer.train(job)
    turned = dict(reversed([*job.domains.items()]))
    with pytest.raises(UserError, match=r"data\.domains"):
        trainer.train(dataclasses.replace(job, domains=turned))


def test_resume_never(job: TrainingRun) -> None:
    """checkpoint.resume=never refuses to start where there is a run."""
    trainer.train(job)
    job.config.checkpoint.resume = "never"
    with pytest.raises(UserError, match="holds checkpoints"):
        trainer.train(job)


def test_oldest_checkpoints_are_removed(job: TrainingRun) -> None:
    """checkpoint.keep=2 of three leaves the newest two, and the run can continue from them."""
    job.config.checkpoint.keep = 2
    trainer.train(job)
    left = sorted(path.name for path in job.directory.glob("iter_*"))
    assert left == ["iter_0000004", "iter_0000006"]
    assert trainer.train(job)["iterations"] == 6


def test_the_newest_checkpoint_is_never_removed(job: TrainingRun) -> None:
    """A later checkpoint, from before the run was set back by hand, does not count as newest."""
    trainer.train(job)
    (job.directory / "iter_0000006").rename(job.directory / "iter_0002000")
    tracker.name_newest(job.directory, 4)
    job.config.checkpoint.keep = 1
    trainer.train(job)
    assert tracker.newest(job.directory) == job.directory / "iter_0000006"
    left = {path.name for path in job.directory.glob("iter_*")}
    assert left == {"iter_0000006", "iter_0002000"}


def test_no_evaluation(job: TrainingRun) -> None:
    """train.eval_iters=0 needs no validation split and reports no perplexity."""
    job.settings.train.eval_iters = 0
    job.config.data.split = "1,0,0"
    result = trainer.train(job)
    assert result["macro"] == {}
    assert "perplexity" not in result["domains"]["code"]


def test_loss_that_is_not_finite(job: TrainingRun) -> None:
    """A run that diverges ends with an error that names the iteration and the setting to change."""
    job.settings.optimizer.lr = 1e30
    with pytest.raises(
        UserError, match=r"norm of the gradients is nan at iteration 2; lower optimizer\.lr"
    ):
        trainer.train(job)


@pytest.fixture
def cudas_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tensors on CPUs claim to be CUDA's, because Megatron's optimizers look at their types."""
    if not torch.cuda.is_available():
        own = torch.Tensor.type

        def cudas(tensor: torch.Tensor, *to: Any) -> object:
            name = own(tensor, *to)
            return name.replace("torch.", "torch.cuda.", 1) if isinstance(name, str) else name

        monkeypatch.setattr(torch.Tensor, "type", cudas)
        monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)


@pytest.mark.usefixtures("cudas_types")
def test_mixed_precision_resumes(job: TrainingRun, tmp_path: Path) -> None:
    """In bf16, with fp32 main parameters, a resumed run equals an uninterrupted one."""
    job.settings.train.precision = "bf16"
    whole = trainer.train(elsewhere(job, tmp_path / "whole"))
    trainer.train(job)
    (job.directory / "latest_checkpointed_iteration.txt").write_text("4")
    resumed = trainer.train(job)
    assert resumed["loss"] == pytest.approx(whole["loss"], abs=1e-6)
    assert resumed["domains"] == whole["domains"]


@pytest.mark.usefixtures("cudas_types")
def test_distributed_optimizer_saves(job: TrainingRun, tmp_path: Path) -> None:
    """Megatron's distributed optimizer can be saved in every release that is supported.

    tests/test_gpu.py loads it again, which needs a fused Adam.
    """
    plain = trainer.train(elsewhere(job, tmp_path / "plain"))
    job.settings.optimizer.use_distributed_optimizer = True
    assert trainer.train(job)["loss"] == pytest.approx(plain["loss"], abs=1e-5)
    assert tracker.newest(job.directory) == job.directory / "iter_0000006"


def test_tensorboard_scalars(job: TrainingRun) -> None:
    """Loss, learning rate, and the loss and samples of every domain are written for TensorBoard."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator
    trainer.train(job)
    events = accumulator(str(job.directory / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"loss", "learning rate", "gradient norm", "tokens per second"} <= tags
    for name in job.domains:
        for group in ("loss by domain", "samples by domain", "validation loss"):
            assert f"{group}/{name}" in tags
    last = {name: events.Scalars(f"samples by domain/{name}")[-1].value for name in job.domains}
    assert sum(last.values()) == 48
