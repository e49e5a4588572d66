"""Let CPUs claim to be one CUDA device, for hosts that run on nothing else; for tests alone.

What runs on it shows which data a host draws. It shows nothing about numerics or speed.
"""

import builtins
import contextlib
import sys
import types
from collections import defaultdict
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")


class _Nothing:
    """A stream or an event whose methods do nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> "_Nothing":
        return self

    def __exit__(self, *_: object) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, _: object) -> float:
        return 0.0

    def record_event(self, *_: object) -> "_Nothing":
        return _Nothing()

    def __getattr__(self, _: str) -> Any:
        return lambda *_, **__: None


class _ToCPU(TorchFunctionMode):
    """A mode in which calls of torch that name a CUDA device run on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") is not None:
            kwargs["device"] = _on_cpu(kwargs["device"])
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        name = getattr(func, "__name__", "")
        if name in ("cuda", "pin_memory"):
            return args[0]
        if name == "to" and len(args) > 1 and isinstance(args[1], str | torch.device):
            args = (args[0], _on_cpu(args[1]), *args[2:])
        return func(*args, **kwargs)


def _on_cpu(device: Any) -> Any:
    if isinstance(device, int) and not isinstance(device, bool):
        return CPU
    return CPU if torch.device(device).type == "cuda" else device


def install() -> None:
    """Claim CUDA from here on, in the whole process."""
    # This comes before a host imports it by name. The wheel has compiled helpers and no makefile.
    from megatron.core.datasets import utils

    utils.compile_helpers = lambda: None
    mode: Any = _ToCPU()
    mode.__enter__()
    properties = types.SimpleNamespace(
        name="CPU", total_memory=1 << 34, major=8, minor=0, multi_processor_count=1, warp_size=32
    )
    claims: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: CPU,
        "is_initialized": lambda: False,
        "get_device_capability": lambda *_: (8, 0),
        "get_device_name": lambda *_: "CPU",
        "get_device_properties": lambda *_: properties,
        "get_rng_state": lambda *_, **__: torch.get_rng_state(),
        "set_rng_state": lambda state, *_, **__: torch.set_rng_state(state),
        "stream": lambda *_: contextlib.nullcontext(),
        "current_stream": lambda *_: _Nothing(),
        "default_stream": lambda *_: _Nothing(),
        "Stream": _Nothing,
        "Event": _Nothing,
        "memory_stats": lambda *_: defaultdict(int),
        "default_generators": (torch.default_generator,),
    }
    for name in ("set_device", "synchronize", "empty_cache", "_lazy_init", "_lazy_call"):
        claims[name] = lambda *_, **__: None
    for name in ("manual_seed", "manual_seed_all", "reset_peak_memory_stats"):
        claims[name] = lambda *_, **__: None
    for name in ("memory_allocated", "memory_reserved"):
        claims[name] = claims[f"max_{name}"] = lambda *_: 0
    for kind in ("Float", "Half", "BFloat16", "Long", "Int", "Double", "Byte"):
        dtype = getattr(torch, f"{kind}Tensor").dtype
        claims[f"{kind}Tensor"] = _maker(dtype)
    for name, value in claims.items():
        setattr(torch.cuda, name, value)
    torch.cuda.random.get_rng_state = claims["get_rng_state"]
    torch.cuda.random.set_rng_state = claims["set_rng_state"]
    for name in ("range_push", "range_pop"):
        setattr(torch.cuda.nvtx, name, lambda *_: None)
    for name in ("init_process_group", "new_group"):
        setattr(torch.distributed, name, _over_gloo(getattr(torch.distributed, name)))
    torch.nn.Module.cuda = lambda module, *_, **__: module  # type: ignore[method-assign]
    torch.Tensor.is_cuda = property(lambda _: True)  # type: ignore[assignment]


def _over_gloo(begin: Any) -> Any:
    def begun(*args: Any, **kwargs: Any) -> Any:
        kwargs = {key: value for key, value in kwargs.items() if key != "device_id"}
        if kwargs.get("backend") is not None:
            kwargs["backend"] = "gloo"
        return begin(*("gloo" if arg == "nccl" else arg for arg in args), **kwargs)

    return begun


def _maker(dtype: torch.dtype) -> Any:
    def make(*given: Any) -> torch.Tensor:
        if given and isinstance(given[0], list | tuple):
            (values,) = given
            return torch.tensor(values, dtype=dtype)
        return torch.empty(*given, dtype=dtype)

    return make


def without_transformer_engine() -> None:
    """Let megatron.bridge.peft import Transformer Engine's names, which it does unguarded.

    All other modules still find that Transformer Engine is not installed.
    """
    real = builtins.__import__

    class Missing(torch.nn.Module):
        def __init__(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("Transformer Engine is not installed")

    pytorch: Any = types.ModuleType("transformer_engine.pytorch")
    for name in ("Linear", "LayerNormLinear", "GroupedLinear", "LayerNorm", "RMSNorm"):
        setattr(pytorch, name, type(name, (Missing,), {}))
    pytorch.ops = types.SimpleNamespace(
        Sequential=Missing, FusibleOperation=Missing, GroupedLinear=Missing
    )
    engine: Any = types.ModuleType("transformer_engine")
    engine.pytorch = pytorch
    stubs = {"transformer_engine": engine, "transformer_engine.pytorch": pytorch}

    def importing(name: str, globals: Any = None, *rest: Any, **named: Any) -> Any:
        asks = str((globals or {}).get("__name__", "")).startswith("megatron.bridge.peft")
        if not (asks and name.split(".")[0] == "transformer_engine"):
            return real(name, globals, *rest, **named)
        sys.modules.update(stubs)
        try:
            return real(name, globals, *rest, **named)
        finally:
            for stub in stubs:
                del sys.modules[stub]

    builtins.__import__ = importing
