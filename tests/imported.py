"""What tests of imported models share: a small Llama, and both backends' states and losses."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from nemo_chameleon.config.data import DataConfig
from nemo_chameleon.config.schema import ParallelConfig, RunConfig
from nemo_chameleon.distributed.layout import model_parallel
from nemo_chameleon.distributed.processes import process_group
from nemo_chameleon.embedding.huggingface import huggingface_extractor
from nemo_chameleon.embedding.megatron import megatron_extractor
from nemo_chameleon.models.gpt import build_gpt
from nemo_chameleon.models.pretrained import find_checkpoint
from nemo_chameleon.train.step import schedule
from nemo_chameleon.utils.arrays import Floats

Results = dict[str, Floats]
"""Hidden states (s, b, h) by the number of their layer, as "layer 1", and "losses" (b, s)."""


def save_llama(
    folder: Path, tokenizer: Path | None, kind: str = "Llama", dtype: Any = None, **settings: Any
) -> Any:
    """Save a small causal LM with random weights, its norms and biases included; return it."""
    torch.manual_seed(0)
    small = {
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "eos_token_id": 0,
        "bos_token_id": 0,
    }
    config = getattr(transformers, f"{kind}Config")(**{**small, **settings})
    lm = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
            else:
                parameter.add_(0.3 * torch.randn(len(parameter)))
    lm.to(dtype or torch.float32).save_pretrained(folder)
    if tokenizer is not None:
        (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    return lm


def by_transformers(lm: Any, tokens: torch.Tensor, layers: Sequence[int]) -> Results:
    """Return what transformers computes; call it within `process_group`.

    Args:
        lm: the causal LM.
        tokens: token ids (b, s + 1).
        layers: numbers of the layers whose outputs are returned, counted from 1.
    """
    with huggingface_extractor(lm) as extractor:
        states = {
            f"layer {part.layer}": part.hidden.numpy()
            for part in extractor.parts(tokens[:, :-1], layers)
        }
        logits = lm(tokens[:, :-1]).logits
    # In fp32 a sum over the vocabulary can be wrong by 1e-4.
    chances = logits.double().log_softmax(dim=-1)
    losses = -chances.gather(2, tokens[:, 1:, None])[..., 0]
    return {**states, "losses": losses.float().numpy()}


def by_megatron(
    checkpoint: str, data: DataConfig, tokens: torch.Tensor, layers: Sequence[int], **layout: int
) -> Results:
    """Return what a checkpoint computes in a layout; every rank must call it in `process_group`.

    The checkpoint is found and loaded as that of proxy.load is, and its state.json says which
    model it is of. Each rank returns what it holds.
    """
    tensor, pipeline = layout.get("tensor", 1), layout.get("pipeline", 1)
    run = RunConfig(parallel=ParallelConfig(tensor, pipeline))
    found = find_checkpoint("proxy.load", checkpoint, run, data)
    found.run.train.micro_batch_size = len(tokens)
    found.run.model.seq_length = tokens.shape[1] - 1
    kept: list[torch.Tensor] = []

    def step(_: Iterator[Any] | None, gpt: Any) -> Any:
        inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        positions = torch.arange(inputs.shape[1]).expand_as(inputs)
        kept.append(gpt(inputs, positions, None, labels=labels))
        return kept[0], lambda losses: (losses.sum(), {})

    with model_parallel(found.run.parallel, 0):
        gpt = build_gpt(found.run, found.vocab_size, for_training=False)
        found.fill(gpt, whole=True)
        with torch.no_grad():
            with megatron_extractor(gpt) as extractor:
                results = {
                    f"layer {part.layer}": part.hidden.numpy()
                    for part in extractor.parts(tokens[:, :-1], layers)
                }
            steps = {"forward_step_func": step, "data_iterator": None, "num_microbatches": 1}
            schedule(found.run, gpt, packed=False, forward_only=True, **steps)
        if kept[0].shape == tokens[:, 1:].shape:  # on the last stage; others give hidden states
            results["losses"] = kept[0].float().numpy()
    return results


def on_each_rank(
    runs: Sequence[tuple[str, DataConfig, Sequence[int], dict[str, int]]], tokens: torch.Tensor
) -> list[Results]:
    """Return what this rank holds in each run; a run has the arguments of `by_megatron`."""
    # On CPUs the stages of a pipeline share a table if nothing asks for a copy of it on CUDA.
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    torch.set_num_threads(1)
    with process_group():
        return [by_megatron(path, data, tokens, layers, **own) for path, data, layers, own in runs]


def gathered(of_ranks: Sequence[Sequence[Results]]) -> list[Results]:
    """Return for each run what all ranks together hold."""
    together: list[Results] = []
    for of_run in zip(*of_ranks, strict=True):
        together.append({name: value for part in of_run for name, value in part.items()})
    return together


def largest_difference(ours: Results, theirs: Results) -> dict[str, float]:
    """Return the largest difference by name: of losses, and of states relative to their norms."""
    assert ours.keys() == theirs.keys()
    differences = {}
    for name, value in theirs.items():
        distance = np.abs(ours[name] - value)
        if name != "losses":
            distance = np.linalg.norm(distance, axis=-1) / np.linalg.norm(value, axis=-1)
        differences[name] = float(distance.max())
    return differences
