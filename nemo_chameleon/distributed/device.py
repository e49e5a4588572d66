"""The device of this process, and settings that the device does not support."""

import torch
from megatron.core.optimizer.distrib_optimizer import HAVE_APEX_OR_TE

from nemo_chameleon.config.schema import RunConfig
from nemo_chameleon.utils.errors import UserError


def current_device() -> torch.device:
    """Return the device that this process computes on."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def dtype_of(precision: str) -> torch.dtype:
    """Return the type of parameters and activations.

    Args:
        precision: a value of train.precision: "bf16", "fp32" or "auto".

    Returns:
        bfloat16 or float32; "auto" is bfloat16 if there is CUDA.
    """
    if precision == "bf16" or (precision == "auto" and torch.cuda.is_available()):
        return torch.bfloat16
    return torch.float32


def require_device(run: RunConfig, prefix: str = "") -> None:
    """Check that this machine and the installed packages support the settings of a run.

    Args:
        run: the settings.
        prefix: what the settings' keys begin with: "" or "proxy.".

    Raises:
        UserError: a setting is not supported; the error names its key and what it needs.
    """
    if run.optimizer.use_distributed_optimizer and not HAVE_APEX_OR_TE:
        # With PyTorch's Adam, megatron-core can save the optimizer's state but not load it.
        raise UserError(
            f"{prefix}optimizer.use_distributed_optimizer needs Transformer Engine or NVIDIA's "
            "apex: install one, or set it to false"
        )
    if torch.cuda.is_available():
        return
    if run.train.precision == "bf16":
        raise UserError(f"{prefix}train.precision=bf16 needs CUDA: set it to auto")
    if run.optimizer.use_distributed_optimizer:
        raise UserError(f"{prefix}optimizer.use_distributed_optimizer needs CUDA: set it to false")
    pipeline = run.parallel.pipeline_model_parallel_size > 1
    if pipeline and run.model.share_embeddings_and_output_weights:
        raise UserError(
            f"{prefix}model.share_embeddings_and_output_weights needs CUDA under pipeline "
            "parallelism: set it to false"
        )
