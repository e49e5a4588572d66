"""The training loop on megatron-core: it trains the proxy, and by default the base model.

It logs losses and samples by domain, saves checkpoints, evaluates, and continues from the newest
checkpoint. At the end it leaves a result.json, which train/report.py reads.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from nemo_chameleon.data.batch_sampler import BatchSampler
from nemo_chameleon.data.blend import validation_datasets
from nemo_chameleon.distributed.collectives import on_first_rank
from nemo_chameleon.distributed.device import current_device
from nemo_chameleon.distributed.layout import model_parallel
from nemo_chameleon.distributed.lease import owned
from nemo_chameleon.distributed.shared_storage import require_shared
from nemo_chameleon.models import checkpoint, tracker
from nemo_chameleon.models.finite import NotFiniteError
from nemo_chameleon.models.gpt import build_gpt
from nemo_chameleon.models.identity import START_DIGEST
from nemo_chameleon.models.optimizer import build_optimizer, build_scheduler
from nemo_chameleon.train.evaluation import evaluate
from nemo_chameleon.train.result import result_of, save_result
from nemo_chameleon.train.resuming import resume
from nemo_chameleon.train.run import TrainingRun
from nemo_chameleon.train.scalars import scalars_writer
from nemo_chameleon.train.step import Batch, DomainLoss, forward_step, needs_data, schedule
from nemo_chameleon.utils import preemption
from nemo_chameleon.utils.console import progress_bar
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.logging import EVERY_RANK, package_logger
from nemo_chameleon.utils.ranks import is_first_rank, rank

logger = package_logger(__package__)

Pauses = Mapping[int, Callable[[Any], None]]
"""What is done with the model after an iteration, by the iteration's number."""


def train(run: TrainingRun, pauses: Pauses = MappingProxyType({})) -> dict[str, Any]:
    """Train a model, or continue its training; every rank must call it, outside of any layout.

    The run's folder then holds checkpoints, TensorBoard scalars, the mixture that the run used, and
    result.json.

    Args:
        run: the run.
        pauses: what is done with this rank's part of the model after an iteration, by its number,
            within the run's layout. It must leave the model as it is. It is done before this
            iteration's checkpoint, so a run that is killed meanwhile does it again.

    Returns:
        The contents of result.json.

    Raises:
        UserError: there is a checkpoint that this run cannot continue from, some node does not see
            the run's folders, another job has the run's folder, or the loss is not finite.
        StoppedError: the run was asked to stop, and has saved its state.
    """
    require_shared(run.config)
    lease = run.directory / "run.lease"
    with (
        owned(lease, str(run.directory), "set output to another folder") as confirm,
        model_parallel(run.settings.parallel, run.settings.train.seed),
    ):
        on_first_rank(partial(tracker.remove_unfinished, run.directory))
        return Trainer(run, confirm).complete(pauses)


class Trainer:
    """The state of a run, and the steps that change it."""

    def __init__(self, run: TrainingRun, confirm: Callable[[], None] = lambda: None) -> None:
        """Build the model and its data, and load the checkpoint that the run continues from.

        Every rank must call it, within the run's layout.

        Args:
            run: the run.
            confirm: raises an error if the run's folder is another job's by now; every rank calls
                it before the run writes.
        """
        self.run, self.confirm = run, confirm
        settings, names = run.settings, list(run.domains)
        self.iteration = 0
        self.drawn, self.answers = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
        self.packed = run.kind.packed
        self.loss = math.nan
        self.last_losses: list[torch.Tensor] = []
        self.seconds = 0.0
        self.started: dict[str, Any] = {}
        self.meter = DomainLoss(names)
        self.model: Any = build_gpt(settings, run.vocab_size)
        resumed = on_first_rank(run.resumable)
        if resumed is None and (start := run.pretrained()) is not None:
            start.fill(self.model, whole=True)  # the optimizer, built below, copies the weights
        self.optimizer = build_optimizer(settings, self.model)
        self.scheduler = build_scheduler(settings, self.optimizer)
        if resumed is not None:
            self._resume(resume(run, self.model, self.optimizer, self.scheduler))
        sizes = {"seq_length": settings.model.seq_length, "seed": settings.train.seed}
        self.dataset = self.run.training_dataset()
        self.validation = {}
        if settings.train.eval_iters:
            self.validation = validation_datasets(run.config.data, run.domains, **sizes)
        self.writer = scalars_writer(run, self.iteration)

    def complete(self, pauses: Pauses = MappingProxyType({})) -> dict[str, Any]:
        """Train the remaining iterations, save, evaluate, and write result.json.

        Every rank must call it.

        Args:
            pauses: see `train`.

        Returns:
            The contents of result.json.

        Raises:
            StoppedError: the run was asked to stop, and has saved its state. It does so at the
                next log interval at the latest.
        """
        run, train = self.run, self.run.settings.train
        if is_first_rank():
            run.mixture.save(run.directory / "mixture.json")
        with (
            preemption.listening() as asked,
            _progress(run, self.iteration) as bar,
            _ended_in_the_end(self._batches()) as batches,
        ):
            window = time.monotonic()
            while self.iteration < train.train_iters:
                grad_norm = self.step(batches)
                if self.iteration in pauses:
                    paused = time.monotonic()
                    pauses[self.iteration](self.model)
                    window += time.monotonic() - paused  # it is not part of the training
                last = self.iteration == train.train_iters
                save = last or _due(self.iteration, run.config.checkpoint.save_interval)
                if save or _due(self.iteration, run.config.logging.log_interval):
                    stop = self._log(bar, grad_norm, time.monotonic() - window, asked())
                    window = time.monotonic()
                    if save or stop:
                        self._save()
                    if stop and not last:
                        if asked():
                            logger.info("rank %d was asked to stop", rank(), extra=EVERY_RANK)
                        raise preemption.StoppedError(
                            f"{run.name}: stopped at iteration {self.iteration}, as requested; the "
                            "same command continues from there"
                        )
                if not last and self.validation and _due(self.iteration, train.eval_interval):
                    self._evaluate()
                    window = time.monotonic()
        scores = self._evaluate()
        result = result_of(
            run,
            iterations=self.iteration,
            samples=self.drawn,
            answer_tokens=self.answers,
            loss=self.loss,
            seconds=self.seconds,
            scores=scores,
        )
        self.confirm()
        if is_first_rank():
            save_result(run, result)
            if self.writer:
                self.writer.close()
        dist.barrier()
        return result

    def step(self, batches: Iterator[Batch] | None) -> float | None:
        """Train one iteration; every rank must call it.

        Args:
            batches: iterator over micro-batches; None on a pipeline stage that reads none.

        Returns:
            The norm of the gradients; None where the optimizer does not compute it.
        """
        train = self.run.settings.train
        micro_batches = train.global_batch_size // (
            train.micro_batch_size * parallel_state.get_data_parallel_world_size()
        )
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        losses = schedule(
            self.run.settings,
            self.model,
            self.packed,
            forward_step_func=partial(forward_step, self.meter, self.packed),
            data_iterator=batches,
            num_microbatches=micro_batches,
            forward_only=False,
        )
        _, grad_norm, _ = self.optimizer.step()
        self.scheduler.step(increment=1)
        self.iteration += 1
        self.last_losses = [item["loss"] for item in losses]
        return float(grad_norm) if grad_norm else None

    def _log(self, bar: Any, grad_norm: float | None, seconds: float, asked: bool) -> bool:
        """Log the iterations since the last call; return whether any rank was asked to stop."""
        run = self.run
        losses, samples, answers = self.meter.reduce()
        for name, count in samples.items():
            self.drawn[name] += count
            self.answers[name] += answers[name]
        self.loss, stop = _over_ranks(self.last_losses, asked)
        self.seconds += seconds
        tokens = sum(samples.values()) * run.settings.model.seq_length
        for what, value in (("loss", self.loss), ("norm of the gradients", grad_norm)):
            if value is not None and not math.isfinite(value):
                raise self._diverged(f"the {what} is {value}")
        bar.update(self.iteration - bar.n)
        bar.set_postfix_str(f"loss {self.loss:.3f}, {tokens / seconds:,.0f} tokens/s")
        if self.writer:
            self.writer.add_scalar("loss", self.loss, self.iteration)
            self.writer.add_scalar(
                "learning rate", self.optimizer.param_groups[0]["lr"], self.iteration
            )
            if grad_norm is not None:
                self.writer.add_scalar("gradient norm", grad_norm, self.iteration)
            self.writer.add_scalar("tokens per second", tokens / seconds, self.iteration)
        self._scalars("loss by domain", losses)
        self._scalars("samples by domain", self.drawn)
        if self.packed:
            self._scalars("answer tokens by domain", self.answers)
        return stop

    def _diverged(self, what: str) -> UserError:
        prefix = "" if self.run.settings is self.run.config else "proxy."
        return UserError(
            f"{self.run.name}: {what} at iteration {self.iteration}; lower {prefix}optimizer.lr, "
            f"raise {prefix}optimizer.lr_warmup_iters, or check the data; with "
            "checkpoint.on_optimizer_change=accept the run then goes on from its newest checkpoint"
        )

    def _scalars(self, group: str, values: Mapping[str, float]) -> None:
        if self.writer:
            for name, value in values.items():
                self.writer.add_scalar(f"{group}/{name}", value, self.iteration)

    def _evaluate(self) -> dict[str, dict[str, float]]:
        scores = evaluate(self.run.settings, self.model, self.validation, self.packed)
        for name, score in scores.items():
            if not math.isfinite(score["perplexity"]):
                raise self._diverged(f"the validation loss of {name} is {score['loss']}")
        self._scalars("validation loss", {name: score["loss"] for name, score in scores.items()})
        return scores

    def _batches(self) -> Iterator[Batch] | None:
        if not needs_data(self.packed):
            return None
        train = self.run.settings.train
        sampler = BatchSampler(
            self.iteration,
            train.train_iters,
            train.global_batch_size,
            train.micro_batch_size,
            parallel_state.get_data_parallel_rank(),
            parallel_state.get_data_parallel_world_size(),
        )
        return iter(
            DataLoader(
                self.dataset,
                batch_sampler=sampler,
                num_workers=self.run.config.data.num_workers,
                pin_memory=torch.cuda.is_available(),
            )
        )

    def _save(self) -> None:
        state = {
            "iteration": self.iteration,
            "samples": self.drawn,
            "answer_tokens": self.answers,
            "loss": self.loss,
            "seconds": self.seconds,
            "identity": {**self.run.identity(), **self.started} if is_first_rank() else {},
        }
        run, parts = self.run, (self.model, self.optimizer, self.scheduler)
        try:
            checkpoint.save(
                run.directory,
                self.iteration,
                state,
                *parts,
                run.config.checkpoint.keep,
                self.confirm,
            )
        except NotFiniteError as error:
            raise self._diverged(str(error)) from error

    def _resume(self, state: dict[str, Any]) -> None:
        self.iteration = state["iteration"]
        self.run.require_settled(self.iteration)
        self.drawn |= state["samples"]
        self.answers |= state.get("answer_tokens", {})
        self.loss = state["loss"]
        self.seconds = state["seconds"]
        self.started = {k: v for k, v in state["identity"].items() if k == START_DIGEST and v}


@contextlib.contextmanager
def _ended_in_the_end(batches: Iterator[Batch] | None) -> Iterator[Iterator[Batch] | None]:
    """End a data loader's processes in the end; they block the signal that would end them later."""
    try:
        yield batches
    finally:
        if isinstance(batches, _MultiProcessingDataLoaderIter):
            batches._shutdown_workers()


def _over_ranks(losses: list[torch.Tensor], asked: bool) -> tuple[float, bool]:
    """Return the last iteration's mean loss per token, and whether any rank was asked to stop."""
    total = torch.zeros(3, dtype=torch.float64, device=current_device())
    if losses and parallel_state.get_tensor_model_parallel_rank() == 0:
        total[:2] += torch.stack(losses).double().sum(0)
    total[2] = asked
    dist.all_reduce(total)
    loss, tokens, stop = total.tolist()
    return loss / tokens, stop > 0


def _due(iteration: int, interval: int) -> bool:
    return interval > 0 and iteration % interval == 0


def _progress(run: TrainingRun, first: int) -> Any:
    return progress_bar(
        total=run.settings.train.train_iters,
        initial=first,
        desc=run.name,
        unit="it",
        disable=not (is_first_rank() and run.config.logging.progress),
    )
