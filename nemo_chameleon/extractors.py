"""A layer's output on whichever ranks it lies: megatron-core GPTs, and Hugging Face causal LMs.

Under tensor parallelism every rank has a hidden state whole; under sequence and context
parallelism a part of the sequence; under pipeline parallelism some of the layers. Nothing is
gathered: `embedding.py` sums what each rank has.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from nemo_chameleon.embedding import Part
from nemo_chameleon.errors import UserError
from nemo_chameleon.model import unwrap


class _ReachedError(Exception):
    """The last layer that is wanted has put out its hidden state."""


@contextmanager
def _hooked(layers: Mapping[int, torch.nn.Module], last: int) -> Iterator[dict[int, torch.Tensor]]:
    """Collect the outputs of layers by number; after the last one the forward pass ends."""
    outputs: dict[int, torch.Tensor] = {}

    def collect(number: int) -> Any:
        def hook(_module: torch.nn.Module, _arguments: Any, output: Any) -> None:
            outputs[number] = output[0] if isinstance(output, tuple) else output
            if number == last:
                raise _ReachedError

        return hook

    handles = [module.register_forward_hook(collect(n)) for n, module in layers.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _evaluating(modules: Sequence[torch.nn.Module]) -> Iterator[None]:
    was_training = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        # Not inference_mode: Megatron keeps tables that are made here, and training uses them.
        with torch.no_grad():
            yield
    finally:
        for part, training in was_training:
            part.training = training


class MegatronExtractor:
    """A megatron-core GPT under tensor, sequence, context, pipeline and data parallelism."""

    def __init__(self, chunks: Sequence[Any]) -> None:
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
        """See `embedding.Extractor`."""
        positions = self._positions(tokens.shape[1], tokens.device)
        if self._contexts > 1:
            tokens = tokens[:, positions]
        wanted = {number: self._layers[number] for number in layers if number in self._layers}
        with _hooked(wanted, max(layers)) as outputs:
            self._run(tokens, positions, self._step_of[max(layers)])
        if self._parts == 1 and self._tensor:
            return  # the first tensor parallel rank has the same
        mine = positions.chunk(self._parts)[self._tensor if self._parts > 1 else 0]
        for number, hidden in outputs.items():
            yield Part(number, hidden, mine)

    def _positions(self, length: int, device: torch.device) -> torch.Tensor:
        """Those that this context parallel rank works on: Megatron gives each two of 2n chunks."""
        everything = torch.arange(length, device=device)
        if self._contexts == 1:
            return everything
        chunks = everything.chunk(2 * self._contexts)
        return torch.cat([chunks[self._context], chunks[-1 - self._context]])

    def _run(self, tokens: torch.Tensor, positions: torch.Tensor, last_step: int) -> None:
        """This stage's share of a forward pass that ends in step `last_step`."""
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
            except _ReachedError:
                return
            dist.send(hidden.contiguous(), ranks[(step + 1) % self._stages], group=group)


@contextmanager
def megatron_extractor(
    model: torch.nn.Module | Sequence[torch.nn.Module],
) -> Iterator[MegatronExtractor]:
    """Attach to a megatron-core GPT; every rank of its layout must enter it.

    Args:
        model: this rank's part, or its parts under virtual pipeline parallelism, in data parallel
            or precision wrappers or not. Afterwards it is as it was.
    """
    parts: Sequence[Any] = model if isinstance(model, Sequence) else [model]
    chunks = [unwrap(part) for part in parts]
    with _evaluating(chunks):
        yield MegatronExtractor(chunks)
        for chunk in chunks:
            chunk.set_input_tensor(None)


class TransformersExtractor:
    """A Hugging Face causal LM, whole on every rank."""

    def __init__(self, model: Any) -> None:
        self.model = model
        config = model.config.get_text_config()
        self.hidden_size, self.num_layers = config.hidden_size, config.num_hidden_layers
        self.length_multiple = 1
        self.replica, self.replicas = dist.get_rank(), dist.get_world_size()
        self.max_length = getattr(config, "max_position_embeddings", None)
        lists = (p for p in model.get_decoder().modules() if isinstance(p, torch.nn.ModuleList))
        layers = next((part for part in lists if len(part) == self.num_layers), None)
        if layers is None:
            raise UserError(f"{type(model).__name__} has no list of {self.num_layers} layers")
        self._layers = dict(enumerate(layers, start=1))
        self._require_causality()

    def parts(self, tokens: torch.Tensor, layers: Sequence[int]) -> Iterator[Part]:
        """See `embedding.Extractor`."""
        wanted = {number: self._layers[number] for number in layers}
        with _hooked(wanted, max(layers)) as outputs, suppress(_ReachedError):
            self.model(input_ids=tokens, use_cache=False)
        if outputs.keys() != wanted.keys():
            raise UserError(
                f"{type(self.model).__name__} does not pass through its layers in order"
            )
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        for number, hidden in outputs.items():
            yield Part(number, hidden.transpose(0, 1), positions)

    def _require_causality(self) -> None:
        """Padding on the right is unseen by a causal model alone."""
        tokens = torch.arange(8, device=self.model.device).repeat(2, 1)
        tokens[1, -1] = 0
        (part,) = self.parts(tokens, [self.num_layers])
        one, other = part.hidden[:-1].float().unbind(1)
        if not torch.allclose(one, other, rtol=1e-2, atol=1e-3 * float(one.abs().max())):
            raise UserError(f"{type(self.model).__name__} is no causal LM: tokens see later ones")


@contextmanager
def transformers_extractor(model: Any) -> Iterator[TransformersExtractor]:
    """Attach to a Hugging Face causal LM; afterwards it is as it was."""
    with _evaluating([model]):
        yield TransformersExtractor(model)
