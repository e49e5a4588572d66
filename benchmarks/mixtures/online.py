"""Implement DoReMi and DoGE, which change the domains' weights at every step of a proxy's training.

In both, every batch has the same number of samples of each domain, the loss or its gradient is
weighted by the current weights, and the result is the mean of the weights over all steps.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch.utils.data import default_collate

from nemo_chameleon.distributed.device import current_device
from nemo_chameleon.distributed.layout import model_parallel
from nemo_chameleon.models import checkpoint
from nemo_chameleon.models.gpt import build_gpt
from nemo_chameleon.train import trainer
from nemo_chameleon.train.run import TrainingRun
from nemo_chameleon.train.step import Batch


class Online(trainer.Trainer):
    """A training run in one process that changes its domains' weights.

    Attributes:
        alpha: current weights (k,).
        history: alpha after every step.
    """

    def __init__(self, run: TrainingRun) -> None:
        # Its checkpoints have no history, so a run that was killed begins anew.
        shutil.rmtree(run.directory, ignore_errors=True)
        super().__init__(run)
        k = len(run.domains)
        self.alpha: NDArray[np.float64] = np.full(k, 1 / k)
        self.history: list[NDArray[np.float64]] = []
        drawn = self.dataset.dataset_index
        self._of_domain = [np.flatnonzero(drawn == i) for i in range(k)]
        self._each = run.settings.train.global_batch_size // k

    @property
    def average(self) -> dict[str, float]:
        """The mean of the weights over the steps, by domain."""
        mean = np.mean(self.history, axis=0)
        return dict(zip(self.run.domains, (mean / mean.sum()).tolist(), strict=True))

    def samples(self, domain: int, iteration: int) -> Batch:
        """Return a domain's part of an iteration's batch."""
        mine = self._of_domain[domain]
        wanted = np.arange(iteration * self._each, (iteration + 1) * self._each) % len(mine)
        batch = default_collate([self.dataset[int(index)] for index in mine[wanted]])
        return {name: value.to(current_device()) for name, value in batch.items()}

    def batch(self, iteration: int) -> Batch:
        """Return an iteration's batch: the parts of all domains, one after the other."""
        parts = [self.samples(i, iteration) for i in range(len(self.alpha))]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def step(self, _: Iterator[Batch] | None) -> float | None:
        """Train one iteration: the method's gradients, then the optimizer."""
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        loss = self.gradients()
        self.last_losses = [torch.stack([loss, torch.ones_like(loss)])]
        _, grad_norm, _ = self.optimizer.step()
        self.scheduler.step(increment=1)
        self.history.append(self.alpha.copy())
        self.iteration += 1
        return float(grad_norm) if grad_norm else None

    def gradients(self) -> torch.Tensor:
        """Update alpha, leave the gradients in the model's buffers and return the loss."""
        raise NotImplementedError

    def backward(self, batch: Batch, loss: Any) -> None:
        """Run one batch forward and backward; `loss` reduces its losses (b, s) to a scalar."""

        def step(_: Any, gpt: torch.nn.Module) -> tuple[torch.Tensor, Any]:
            def scalar(losses: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
                self.meter.add(batch["dataset_id"], losses.float(), batch["loss_mask"])
                value = loss(losses.float())
                return value, {}

            return per_token(gpt, batch), scalar

        get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=None,
            model=self.model,
            num_microbatches=1,
            seq_length=self.run.settings.model.seq_length,
            micro_batch_size=len(batch["tokens"]),
            forward_only=False,
        )


def per_token(gpt: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Return the losses (b, s) of a batch."""
    losses: torch.Tensor = gpt(batch["tokens"], batch["position_ids"], None, labels=batch["labels"])
    return losses


class DoReMi(Online):
    """DoReMi: distributionally robust optimisation over excess losses.

    This is algorithm 1 of Xie et al. 2023, arXiv 2305.10429, with the paper's step size of 1 and
    its smoothing of 1e-3.
    """

    def __init__(self, run: TrainingRun, reference: torch.nn.Module) -> None:
        """Start a run; `reference` is a model trained on the reference weights, here uniform."""
        super().__init__(run)
        self._reference = reference
        self.excess: list[NDArray[np.float64]] = []

    def gradients(self) -> torch.Tensor:
        """See `Online`."""
        batch = self.batch(self.iteration)
        with torch.no_grad():
            known = per_token(self._reference, batch).float()
        loss = torch.zeros(())

        def of(losses: torch.Tensor) -> torch.Tensor:
            nonlocal loss
            by_domain = losses.view(len(self.alpha), -1).mean(1)
            excess = (losses - known).detach().clamp(min=0).view(len(self.alpha), -1).mean(1)
            self._move(excess.double().cpu().numpy())
            loss = by_domain.detach().mean()
            weights = torch.as_tensor(self.alpha, dtype=torch.float32, device=losses.device)
            return (weights * by_domain).sum()

        self.backward(batch, of)
        return loss

    def _move(self, excess: NDArray[np.float64], smoothing: float = 1e-3) -> None:
        self.excess.append(excess)
        moved = self.alpha * np.exp(excess)
        self.alpha = (1 - smoothing) * moved / moved.sum() + smoothing / len(moved)


class DoGE(Online):
    """DoGE: weights grow with the alignment of a domain's gradient with those of the others.

    This is algorithm 1 of Fan et al. 2024, arXiv 2310.15393: alpha_i is multiplied by
    exp(lr · s_i / μ), where s_i = <g_i, Σ g_j>. It follows the authors' code where that differs
    from the paper's formula: the sum leaves out g_i itself, s_i is divided by the gradients' mean
    norm and clipped to 0..5, and μ is 0.01. With the formula and μ = 0.05, the noise of a domain's
    own gradient dominates: in SIZE=cpu one domain got a weight of 94 %.
    """

    mu, most = 0.01, 5.0

    def __init__(self, run: TrainingRun) -> None:
        super().__init__(run)
        self.alignment: list[NDArray[np.float64]] = []
        self._parameters = [p for p in self.model.parameters() if p.requires_grad]

    def gradients(self) -> torch.Tensor:
        """See `Online`."""
        gradients, losses = self._by_domain(self.iteration)
        norm = gradients.norm(dim=1).mean()
        alignment = (_with_others(gradients) / norm).double().cpu().numpy()
        self.alignment.append(alignment)
        lr = self.optimizer.param_groups[0]["lr"]
        exponent = lr * np.clip(alignment, 0, self.most) / self.mu
        moved = self.alpha * np.exp(exponent - exponent.max())
        self.alpha = moved / moved.sum()
        weights = torch.as_tensor(self.alpha, dtype=gradients.dtype, device=gradients.device)
        at, mixed = 0, weights @ gradients
        for parameter in self._parameters:
            size = parameter.numel()
            parameter.main_grad.copy_(mixed[at : at + size].view_as(parameter))
            at += size
        return losses.mean()

    def _by_domain(self, iteration: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return gradients (k, parameters) and losses (k,)."""
        gradients, losses = [], []
        for i in range(len(self.alpha)):
            self.model.zero_grad_buffer()

            def mean(of_tokens: torch.Tensor) -> torch.Tensor:
                losses.append(of_tokens.detach().mean())
                return of_tokens.mean()

            self.backward(self.samples(i, iteration), mean)
            gradients.append(torch.cat([p.main_grad.flatten() for p in self._parameters]))
        self.model.zero_grad_buffer()
        return torch.stack(gradients), torch.stack(losses)

    @torch.no_grad()
    def checked(self, step: float = 1e-3) -> float:
        """Check the paper's premise that alignment predicts how much a step lowers the loss.

        From the final parameters, take a step along the gradient of each domain alone, and measure
        how much it lowers the mean loss of the other domains on another batch.

        Returns:
            Spearman's correlation of the alignment with this decrease.
        """
        with torch.enable_grad():
            gradients, _ = self._by_domain(self.iteration - 1)
        alignment = _with_others(gradients)
        other = self.batch(self.iteration - 2)
        k, gains = len(gradients), []

        def loss_of_others(i: int) -> float:
            by_domain = per_token(self.model, other).float().view(k, -1).mean(1)
            return float(by_domain.sum() - by_domain[i]) / (k - 1)

        for i, gradient in enumerate(gradients):
            before = loss_of_others(i)
            for sign in (-1, 1):
                at = 0
                for parameter in self._parameters:
                    part = gradient[at : at + parameter.numel()].view_as(parameter)
                    parameter.add_(part.to(parameter.dtype), alpha=sign * step)
                    at += parameter.numel()
                if sign < 0:
                    gains.append(before - loss_of_others(i))
        return float(spearmanr(alignment.double().cpu().numpy(), gains).statistic)


def _with_others(gradients: torch.Tensor) -> torch.Tensor:
    """Return <g_i, Σ g_j> (k,), where j runs over all domains except i."""
    return gradients @ gradients.sum(0) - gradients.square().sum(1)


def doremi(run: TrainingRun, reference: Path, vocab_size: int) -> DoReMi:
    """Train DoReMi's proxy against a checkpoint of the reference model, which has its shape."""
    with model_parallel(run.settings.parallel, run.settings.train.seed):
        gpt = build_gpt(run.settings, vocab_size, for_training=False)
        checkpoint.load(reference, gpt)
        gpt.eval()
        state = DoReMi(run, gpt)
        state.complete()
        return state
