"""The training loop on megatron-core: the proxy's, and the default engine for the base model's."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch.utils.data import DataLoader

from nemo_chameleon import (
    checkpoint,
    datasets,
    evaluation,
    model,
    optimizer,
    parallel,
    stopping,
    storage,
)
from nemo_chameleon.console import progress_bar
from nemo_chameleon.errors import UserError
from nemo_chameleon.files import write_atomically
from nemo_chameleon.job import Job
from nemo_chameleon.mixture import created
from nemo_chameleon.schema import SFT

RESULT = "result.json"


def train(job: Job) -> dict[str, Any]:
    """Train, or go on with, a model; every rank must call it, outside of any layout.

    Leaves in the job's folder: checkpoints, TensorBoard scalars, the mixture it used and
    result.json.

    Returns:
        What result.json holds.

    Raises:
        UserError: a checkpoint is there that this job cannot go on from, or not every node sees its
            folders.
    """
    storage.require_shared(job.config)
    with parallel.layout(job.run.parallel, job.run.train.seed):
        return Training(job).complete()


class Training:
    """The state of a run, and the steps that change it."""

    def __init__(self, job: Job) -> None:
        self.job = job
        run, names = job.run, list(job.domains)
        self.iteration = 0
        self.drawn, self.answers = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
        self.packed = job.config.data.dataset == SFT
        self.loss = math.nan
        self.last_losses: list[torch.Tensor] = []
        self.seconds = 0.0
        self.meter = evaluation.DomainLoss(names)
        vocabulary = datasets.Vocabulary.of(job.config.data)
        self.model: Any = model.build(run, vocabulary.vocab_size)
        resumed = parallel.on_first_rank(job.resumable)
        if resumed is None and (start := job.pretrained()) is not None:
            start.fill(self.model, whole=True)  # before the optimizer copies its weights
        self.optimizer = optimizer.build(run, self.model)
        self.scheduler = optimizer.build_scheduler(run, self.optimizer)
        if resumed is not None:
            self._resume(*resumed)
        sizes = {"seq_length": run.model.seq_length, "seed": run.train.seed}
        self.dataset = datasets.training_dataset(
            job.config.data, job.domains, job.mixture, samples=run.train.samples, **sizes
        )
        self.validation = {}
        if run.train.eval_iters:
            self.validation = datasets.validation_datasets(job.config.data, job.domains, **sizes)
        self.writer = _tensorboard(job, self.iteration)

    def complete(self) -> dict[str, Any]:
        """All remaining iterations, a last checkpoint and evaluation, and result.json.

        Raises:
            StoppedError: it was asked to stop; it has saved where it was, a log interval later at
                most.
        """
        job, train = self.job, self.job.run.train
        if parallel.is_first_rank():
            job.mixture.save(job.directory / "mixture.json")
        with stopping.listening() as asked, _progress(job, self.iteration) as bar:
            batches = self._batches()
            window = time.monotonic()
            while self.iteration < train.train_iters:
                grad_norm = self.step(batches)
                last = self.iteration == train.train_iters
                save = last or _due(self.iteration, job.config.checkpoint.save_interval)
                if save or _due(self.iteration, job.config.logging.log_interval):
                    stop = self._log(bar, grad_norm, time.monotonic() - window, asked())
                    window = time.monotonic()
                    if save or stop:
                        self._save()
                    if stop and not last:
                        raise stopping.StoppedError(
                            f"{job.name}: stopped at iteration {self.iteration}, as it was asked "
                            "to; the same command goes on from there"
                        )
                if not last and self.validation and _due(self.iteration, train.eval_interval):
                    self._evaluate()
                    window = time.monotonic()
        result = self._result(self._evaluate())
        if parallel.is_first_rank():
            write_atomically(job.directory / RESULT, json.dumps(result, indent=2) + "\n")
            if self.writer:
                self.writer.close()
        dist.barrier()
        return result

    def step(self, batches: Iterator[evaluation.Batch] | None) -> float | None:
        """One iteration; returns the gradients' norm, None where nothing is clipped by it."""
        train = self.job.run.train
        micro_batches = train.global_batch_size // (
            train.micro_batch_size * parallel_state.get_data_parallel_world_size()
        )
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        losses = evaluation.schedule(
            self.job.run,
            self.model,
            self.packed,
            forward_step_func=partial(evaluation.forward_step, self.meter, self.packed),
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
        """Tell of the iterations since the last time; whether any rank was asked to stop."""
        job = self.job
        losses, samples, answers = self.meter.reduce()
        for name, count in samples.items():
            self.drawn[name] += count
            self.answers[name] += answers[name]
        self.loss, stop = _over_ranks(self.last_losses, asked)
        self.seconds += seconds
        tokens = sum(samples.values()) * job.run.model.seq_length
        if not math.isfinite(self.loss):
            prefix = "" if job.run is job.config else f"{job.name}."
            raise UserError(
                f"{job.name}: the loss is {self.loss} at iteration {self.iteration}; lower "
                f"{prefix}optimizer.lr, lengthen {prefix}optimizer.lr_warmup_iters or look at the "
                "data"
            )
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

    def _scalars(self, group: str, values: Mapping[str, float]) -> None:
        if self.writer:
            for name, value in values.items():
                self.writer.add_scalar(f"{group}/{name}", value, self.iteration)

    def _evaluate(self) -> dict[str, dict[str, float]]:
        scores = evaluation.evaluate(self.job.run, self.model, self.validation, self.packed)
        self._scalars("validation loss", {name: score["loss"] for name, score in scores.items()})
        return scores

    def _batches(self) -> Iterator[evaluation.Batch] | None:
        if not evaluation.needs_data(self.packed):
            return None
        train = self.job.run.train
        sampler = datasets.BatchSampler(
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
                num_workers=self.job.config.data.num_workers,
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
            "identity": self.job.identity(),
        }
        checkpoint.save(
            self.job.directory,
            self.iteration,
            state,
            self.model,
            self.optimizer,
            self.scheduler,
            self.job.config.checkpoint.keep,
        )

    def _resume(self, path: Path, state: dict[str, Any]) -> None:
        checkpoint.load(path, self.model, self.optimizer, self.scheduler)
        self.iteration = state["iteration"]
        self.drawn = state["samples"]
        self.answers = state.get("answer_tokens", self.answers)
        self.loss = state["loss"]
        self.seconds = state["seconds"]
        parallel.say(f"{self.job.name}: going on from {path}")

    def _result(self, scores: dict[str, dict[str, float]]) -> dict[str, Any]:
        job = self.job
        length = job.run.model.seq_length
        domains = {
            name: {
                "weight": job.mixture.weights[name],
                "tokens": domain.tokens,
                "samples": self.drawn[name],
                **({"answer_tokens": self.answers[name]} if self.packed else {}),
                "epochs": self.drawn[name] * length / domain.pass_tokens(length),
                **scores.get(name, {}),
            }
            for name, domain in job.domains.items()
        }
        apart = {name: score for name, score in scores.items() if name not in domains}
        return {
            "run": job.name,
            "mixture": job.mixture.name,
            "parameters": model.parameter_count(
                job.run.model, datasets.Vocabulary.of(job.config.data).vocab_size
            ),
            "iterations": self.iteration,
            "tokens": sum(self.drawn.values()) * length,
            "loss": self.loss,
            "domains": domains,
            "macro": _means({name: scores[name] for name in domains if name in scores}),
            "validation": apart,
            "validation macro": _means(apart),
            "seconds": round(self.seconds, 1),
            "created": created(),
        }


def _means(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Of every figure over domains, each counting the same; empty where there is none."""
    return {
        what: sum(score[what] for score in scores.values()) / len(scores)
        for what in ("loss", "perplexity")
        if scores
    }


def _over_ranks(losses: list[torch.Tensor], asked: bool) -> tuple[float, bool]:
    """The last iteration's loss, a mean over its tokens; whether any rank was asked to stop."""
    total = torch.zeros(3, dtype=torch.float64, device=parallel.device())
    if losses and parallel_state.get_tensor_model_parallel_rank() == 0:
        total[:2] += torch.stack(losses).double().sum(0)
    total[2] = asked
    dist.all_reduce(total)
    loss, tokens, stop = total.tolist()
    return loss / tokens, stop > 0


def _due(iteration: int, interval: int) -> bool:
    return interval > 0 and iteration % interval == 0


def _progress(job: Job, first: int) -> Any:
    return progress_bar(
        total=job.run.train.train_iters,
        initial=first,
        desc=job.name,
        unit="it",
        disable=not (parallel.is_first_rank() and job.config.logging.progress),
    )


def _tensorboard(job: Job, iteration: int) -> Any:
    if not (job.config.logging.tensorboard and parallel.is_first_rank()):
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        parallel.say("TensorBoard is not installed: no scalars; pip install nemo_chameleon[plots]")
        return None
    # What a killed run wrote after its last checkpoint is written again.
    purge = iteration + 1 if iteration else None
    return SummaryWriter(str(job.directory / "tensorboard"), purge_step=purge)
