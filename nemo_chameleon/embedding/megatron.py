"""megatron-core GPTs that embed, in any layout.

Under tensor parallelism every rank holds whole hidden states. Under sequence and context
parallelism it holds a part of the sequence, and under pipeline parallelism some of the layers.
Nothing is gathered: pooling.py sums what each rank holds.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from nemo_chameleon.distributed.device import dtype_of
from nemo_chameleon.distributed.layout import model_parallel
from nemo_chameleon.embedding.hooks import (
    Extractor,
    Part,
    ReachedLastLayerError,
    evaluating,
    hooked,
)
from nemo_chameleon.models.gpt import build_gpt, model_record, unwrap
from nemo_chameleon.models.pretrained import PretrainedCheckpoint


@dataclass(frozen=True)
class MegatronProxy:
    """A checkpoint of a megatron-core GPT that embeds; see `Proxy`.

    Attributes:
        checkpoint: the checkpoint, with the layout to load it in.
    """

    checkpoint: PretrainedCheckpoint

    @property
    def num_layers(self) -> int:
        """See `Proxy`."""
        return self.checkpoint.run.model.num_layers

    @property
    def seq_length(self) -> int:
        """See `Proxy`."""
        return self.checkpoint.run.model.seq_length

    @property
    def identity(self) -> str:
        """See `Proxy`."""
        return self.checkpoint.identity

    @property
    def earlier_identity(self) -> str:
        """See `Proxy`."""
        return self.checkpoint.earlier_identity

    def record(self) -> dict[str, Any]:
        """See `Proxy`."""
        return {
            "checkpoint": str(self.checkpoint.path),
            "model": model_record(self.checkpoint.run.model),
            "vocab_size": self.checkpoint.vocab_size,
            "precision": str(dtype_of(self.checkpoint.run.train.precision)),
        }

    @contextmanager
    def opened(self) -> Iterator[Extractor]:
        """See `Proxy`."""
        with model_parallel(self.checkpoint.run.parallel, 0):
            gpt = build_gpt(self.checkpoint.run, self.checkpoint.vocab_size, for_training=False)
            self.checkpoint.fill(gpt)
            with megatron_extractor(gpt) as extractor:
                yield extractor


class MegatronExtractor:
    """See `Extractor`: a GPT under tensor, sequence, context, pipeline and data parallelism."""

    def __init__(self, chunks: Sequence[Any]) -> None:
        """Find out where the layers are; every rank of the layout must call it.

        Args:
            chunks: this rank's parts of the model, without wrappers: one, or several under virtual
                pipeline parallelism.
        """
        self.chunks = chunks
        config = chunks[0].config
        self.hidden_size, self.num_layers = config.hidden_size, config.num_layers
        self.dtype = torch.float32 if config.fp32_residual_connection else config.params_dtype
        learned = getattr(chunks[0], "position_embedding_type", None) == "learned_absolute"
        self.max_length = chunks[0].max_sequence_length if learned else None
        self.replica = parallel_state.get_data_parallel_rank()
        self.replicas = parallel_state.get_data_parallel_world_size()
        self._stage = parallel_state.get_pipeline_model_parallel_rank()
        self._stages = parallel_state.get_pipeline_model_parallel_world_size()
        self._context = parallel_state.get_context_parallel_rank()
        self._contexts = parallel_state.get_context_parallel_world_size()
        tensor_ranks = parallel_state.get_tensor_model_parallel_world_size()
        self._tensor = parallel_state.get_tensor_model_parallel_rank()
        self._parts = tensor_ranks if config.sequence_parallel else 1
        self.length_multiple = self._parts * (2 * self._contexts if self._contexts > 1 else 1)
        self._layers = {
            layer.layer_number: layer for chunk in chunks for layer in chunk.decoder.layers
        }
        held = [[layer.layer_number for layer in chunk.decoder.layers] for chunk in chunks]
        everyones: list[Any] = [held]
        if self._stages > 1:
            everyones = [None] * self._stages
            group = parallel_state.get_pipeline_model_parallel_group()
            dist.all_gather_object(everyones, held, group=group)
        # Chunk 0 of every stage comes first, then chunk 1 of every stage, and so on.
        self._step_of = {
            layer: chunk * self._stages + stage
            for stage, chunks_of_stage in enumerate(everyones)
            for chunk, numbers in enumerate(chunks_of_stage)
            for layer in numbers
        }

    def parts(self, tokens: torch.Tensor, layers: Sequence[int]) -> Iterator[Part]:
        """See `Extractor`."""
        positions = self._positions(tokens.shape[1], tokens.device)
        if self._contexts > 1:
            tokens = tokens[:, positions]
        wanted = {number: self._layers[number] for number in layers if number in self._layers}
        with hooked(wanted, max(layers)) as outputs:
            self._run(tokens, positions, self._step_of[max(layers)])
        if self._parts == 1 and self._tensor:
            return  # the first tensor parallel rank gives the same hidden states
        mine = positions.chunk(self._parts)[self._tensor if self._parts > 1 else 0]
        for number, hidden in outputs.items():
            yield Part(number, hidden, mine)

    def _positions(self, length: int, device: torch.device) -> torch.Tensor:
        """Return this context parallel rank's positions: Megatron gives it two of 2n chunks."""
        everything = torch.arange(length, device=device)
        if self._contexts == 1:
            return everything
        chunks = everything.chunk(2 * self._contexts)
        return torch.cat([chunks[self._context], chunks[-1 - self._context]])

    def _run(self, tokens: torch.Tensor, positions: torch.Tensor, last_step: int) -> None:
        """Run this stage's share of a forward pass that ends in step `last_step`."""
        group = parallel_state.get_pipeline_model_parallel_group()
        ranks = dist.get_process_group_ranks(group)
        shape = (len(positions) // self._parts, len(tokens), self.hidden_size)
        for step in range(self._stage, last_step + 1, self._stages):
            chunk = self.chunks[step // self._stages]
            if step:
                arrived = torch.empty(shape, dtype=self.dtype, device=tokens.device)
                dist.recv(arrived, ranks[(step - 1) % self._stages], group=group)
                chunk.set_input_tensor(arrived)
            try:
                hidden = chunk(tokens, positions.expand_as(tokens), None)
            except ReachedLastLayerError:
                return
            dist.send(hidden.contiguous(), ranks[(step + 1) % self._stages], group=group)


@contextmanager
def megatron_extractor(
    model: torch.nn.Module | Sequence[torch.nn.Module],
) -> Iterator[MegatronExtractor]:
    """Attach to a megatron-core GPT; every rank of its layout must enter the context.

    Args:
        model: this rank's part of the model, or its parts under virtual pipeline parallelism, with
            or without wrappers for data parallelism and precision. Afterwards it is as it was.

    Yields:
        The extractor of its layers' outputs.
    """
    parts: Sequence[Any] = model if isinstance(model, Sequence) else [model]
    chunks = [unwrap(part) for part in parts]
    with evaluating(chunks):
        yield MegatronExtractor(chunks)
        for chunk in chunks:
            chunk.set_input_tensor(None)
