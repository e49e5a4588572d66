"""Changes to megatron-core that let it train without CUDA, for the tests and the demo.

megatron-core names CUDA in a few dozen places, for instance as the device of a buffer. Those
modules get a `torch` here that answers "cpu"; nothing else changes. `device.require_device` refuses
what this does not cover: bf16 and the distributed optimizer, which compare types of CUDA tensors,
and tied embeddings under pipeline parallelism.
"""

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

_MODULES = """
    utils parallel_state
    tensor_parallel.layers tensor_parallel.mappings tensor_parallel.utils
    pipeline_parallel.p2p_communication pipeline_parallel.schedules
    optimizer.optimizer optimizer.clip_grads optimizer.distrib_optimizer
    distributed.param_and_grad_buffer distributed.distributed_data_parallel
    models.common.embeddings.rotary_pos_embedding models.common.language_module.language_module
    transformer.utils transformer.module
    dist_checkpointing.strategies.state_dict_saver dist_checkpointing.strategies.filesystem_async
    dist_checkpointing.strategies.async_utils
""".split()


class _Cuda:
    """A `torch.cuda` whose device is the CPU and whose work is always done."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cuda, name)

    def current_device(self) -> torch.device:
        return torch.device("cpu")

    def current_stream(self, *_: Any) -> None:
        """Return no stream, because the CPU works in order."""

    def synchronize(self, *_: Any) -> None:
        pass

    def empty_cache(self) -> None:
        pass


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def create(*args: Any, **kwargs: Any) -> torch.Tensor:
        if str(kwargs.get("device")).startswith("cuda"):
            kwargs["device"] = "cpu"
        return factory(*args, **kwargs)

    return create


class _Torch:
    """A `torch` that makes tensors for "cuda" on the CPU."""

    def __init__(self) -> None:
        self.cuda = _Cuda()
        for name in ("zeros", "ones", "empty", "tensor", "full", "empty_like", "zeros_like"):
            setattr(self, name, _on_cpu(getattr(torch, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@functools.cache
def install() -> None:
    """Prepare megatron-core's modules for a machine without CUDA.

    Raises:
        RuntimeError: the machine has CUDA.
    """
    if torch.cuda.is_available():
        raise RuntimeError("megatron_on_cpu must not be used on a machine with CUDA")
    stand_in = _Torch()
    for name in _MODULES:
        module = importlib.import_module(f"megatron.core.{name}")
        if getattr(module, "torch", None) is torch:
            module.torch = stand_in  # type: ignore[attr-defined]
    optimizer = importlib.import_module("megatron.core.optimizer.optimizer")
    optimizer.clip_grad_by_total_norm_fp32 = _clip  # type: ignore[attr-defined]


def seed(value: int) -> None:
    """Seed Megatron's model-parallel random states, using the CPU's random generator.

    Args:
        value: the seed.
    """
    from megatron.core.tensor_parallel import random

    class CpuStates(random.CudaRNGStatesTracker):
        def add(self, name: str, seed: int) -> None:
            self._is_initialized = True
            self.seeds_.add(seed)
            self.states_[name] = torch.Generator().manual_seed(seed).get_state()

        @contextlib.contextmanager
        def fork(self, name: str = "model-parallel-rng") -> Iterator[None]:
            outside = torch.get_rng_state()
            torch.set_rng_state(self.states_[name])
            try:
                yield
            finally:
                self.states_[name] = torch.get_rng_state()
                torch.set_rng_state(outside)

    random._CUDA_RNG_STATE_TRACKER = CpuStates()
    random._CUDA_RNG_STATE_TRACKER_INITIALIZED = True
    random.model_parallel_cuda_manual_seed(value)


def _clip(
    parameters: Iterable[torch.Tensor] | torch.Tensor,
    max_norm: float,
    total_norm: float,
    use_decoupled_grad: bool = False,
) -> None:
    """Clip gradients like Megatron's clip_grad_by_total_norm_fp32, on the CPU."""
    del use_decoupled_grad  # only Transformer Engine's optimizer needs it
    coefficient = max_norm / (total_norm + 1.0e-6)
    if coefficient < 1.0:
        for parameter in [parameters] if isinstance(parameters, torch.Tensor) else parameters:
            if parameter.grad is not None:
                parameter.grad.detach().mul_(coefficient)
