"""Megatron's optimizer and its learning rate schedule, from the configuration.

Hosts build their own optimizer from the same settings.
"""

from typing import Any

import torch
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from nemo_chameleon.config.schema import RunConfig
from nemo_chameleon.distributed.device import dtype_of


def build_optimizer(run: RunConfig, module: torch.nn.Module) -> Any:
    """Build Megatron's optimizer for this rank's part of the model.

    Args:
        run: the optimizer's settings and the precision.
        module: this rank's part of the model.

    Returns:
        The optimizer.
    """
    return get_megatron_optimizer(OptimizerConfig(**optimizer_settings(run)), [module])


def optimizer_settings(run: RunConfig) -> dict[str, Any]:
    """Return the arguments of `OptimizerConfig` and of the classes that hosts derive from it.

    Args:
        run: the optimizer's settings and the precision.

    Returns:
        Arguments by name.
    """
    wanted = run.optimizer
    dtype = dtype_of(run.train.precision)
    return {
        "optimizer": "adam",
        "lr": wanted.lr,
        "min_lr": wanted.min_lr,
        "weight_decay": wanted.weight_decay,
        "adam_beta1": wanted.adam_beta1,
        "adam_beta2": wanted.adam_beta2,
        "adam_eps": wanted.adam_eps,
        "clip_grad": wanted.clip_grad,
        "bf16": dtype == torch.bfloat16,
        "params_dtype": dtype,
        "use_distributed_optimizer": wanted.use_distributed_optimizer,
    }


def build_scheduler(run: RunConfig, optimizer: Any) -> OptimizerParamScheduler:
    """Build the schedule of an optimizer's learning rate over the run.

    Args:
        run: the optimizer's settings and the number of iterations.
        optimizer: the optimizer.

    Returns:
        The schedule, whose steps are iterations.
    """
    wanted = run.optimizer
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=wanted.lr,
        min_lr=wanted.min_lr,
        lr_warmup_steps=wanted.lr_warmup_iters,
        lr_decay_steps=run.train.train_iters,
        lr_decay_style=wanted.lr_decay_style,
        start_wd=wanted.weight_decay,
        end_wd=wanted.weight_decay,
        wd_incr_steps=0,
        wd_incr_style="constant",
        use_checkpoint_opt_param_scheduler=False,  # the run's own settings count
        override_opt_param_scheduler=True,
    )
