"""What test_layouts.py runs on each rank: it embeds `corpus` in several layouts."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_functional
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.models.gpt import GPTModel

from nemo_chameleon.config import load_config
from nemo_chameleon.data.indexed import open_indexed
from nemo_chameleon.distributed import megatron_on_cpu
from nemo_chameleon.distributed.processes import process_group
from nemo_chameleon.embedding import embed
from nemo_chameleon.embedding.megatron import megatron_extractor
from nemo_chameleon.mixture.embeddings_file import save_embeddings
from nemo_chameleon.models import layers
from nemo_chameleon.models.gpt import transformer_config
from nemo_chameleon.models.layers import TorchAttention, layer_spec
from nemo_chameleon.utils.ranks import is_first_rank

LAYERS = (2, 4)
TORCH_ATTENTION = layers.TorchAttention
all_gather: Any = dist_functional.all_gather  # torch gives it no types


class ContextAttention(TorchAttention):
    """Attention under context parallelism on gloo, where Transformer Engine's is not available.

    The keys and values of all ranks are gathered and put in order; each rank keeps its queries.
    """

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
    ) -> torch.Tensor:
        group = parallel_state.get_context_parallel_group()
        ranks, rank = dist.get_world_size(group), dist.get_rank(group)
        half = len(query) // 2

        def whole(part: torch.Tensor) -> torch.Tensor:
            parts = all_gather(part.contiguous(), group=group)
            first = [p[:half] for p in parts]
            return torch.cat([*first, *[p[half:] for p in reversed(parts)]])

        q, k, v = (part.permute(1, 2, 0, 3) for part in (query, whole(key), whole(value)))
        chunks = torch.arange(len(query) * ranks).chunk(2 * ranks)
        mine = torch.cat([chunks[rank], chunks[-1 - rank]])
        seen = mine[:, None] >= torch.arange(len(query) * ranks)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return out.permute(2, 0, 1, 3).reshape(*query.shape[:2], -1)


def embed_in(layout: dict[str, Any], config: Any, checkpoint: str, out: Path) -> None:
    """Build the proxy in a layout, load its checkpoint, embed the domains, and save the result."""
    wanted = {"tensor": 1, "sequence": False, "pipeline": 1, "virtual": None, "context": 1} | layout
    run = config.proxy
    run.parallel.tensor_model_parallel_size = wanted["tensor"]
    run.parallel.sequence_parallel = wanted["sequence"]
    run.parallel.pipeline_model_parallel_size = wanted["pipeline"]
    attention = ContextAttention if wanted["context"] > 1 else TORCH_ATTENTION
    layers.TorchAttention = attention  # type: ignore[misc]
    parallel_state.initialize_model_parallel(
        wanted["tensor"],
        wanted["pipeline"],
        wanted["virtual"],
        context_parallel_size=wanted["context"],
    )
    megatron_on_cpu.seed(3)
    settings = transformer_config(run)
    settings.context_parallel_size = wanted["context"]
    settings.virtual_pipeline_model_parallel_size = wanted["virtual"]
    stages = (
        [{}] if wanted["virtual"] is None else [{"vp_stage": i} for i in range(wanted["virtual"])]
    )
    chunks = []
    for stage in stages:
        ends = {"ignore_virtual": not stage, **stage}
        chunk = GPTModel(
            settings,
            layer_spec(settings, **stage),
            vocab_size=512,
            max_sequence_length=run.model.seq_length,
            position_embedding_type=run.model.position_embedding_type,
            pre_process=parallel_state.is_pipeline_first_stage(**ends),
            post_process=parallel_state.is_pipeline_last_stage(**ends),
            **stage,
        )
        chunks.append(chunk)
    wanted_state = {str(i): chunk.sharded_state_dict() for i, chunk in enumerate(chunks)}
    found = dist_checkpointing.load(wanted_state, checkpoint)
    for i, chunk in enumerate(chunks):
        chunk.load_state_dict(found[str(i)])
    domains = open_indexed(config.data.domains, config.data.split)
    with megatron_extractor(chunks) as extractor:
        embeddings = [
            of_layer
            for normalize_states in (False, True)
            for of_layer in embed(
                extractor,
                domains,
                layers=LAYERS,
                samples=41,
                sample_length=run.model.seq_length,
                micro_batch_size=4,
                seed=1,
                cross_documents=False,
                normalize_states=normalize_states,
            )
        ]
    digests = [shards.digest() for of_layer in embeddings for shards in of_layer.values()]
    everyones: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, digests)
    if any(theirs != digests for theirs in everyones):
        raise AssertionError(f"{layout}: the ranks do not have the same embeddings")
    if is_first_rank():
        save_embeddings(out, embeddings)
    parallel_state.destroy_model_parallel()


def embed_in_each(
    layouts: dict[str, dict[str, Any]], config_file: str, checkpoint: str, folder: Path
) -> None:
    """Embed in one layout after the other; the first rank writes LAYOUT.safetensors to `folder`."""
    config = load_config(config_file)
    with process_group():
        for name, layout in layouts.items():
            embed_in(layout, config, checkpoint, folder / f"{name}.safetensors")
