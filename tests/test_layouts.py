"""One checkpoint gives the same embeddings and weights in every layout of the proxy."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embed_in_layouts import embed_in_each
from nemo_chameleon.config import load_config
from nemo_chameleon.distributed.layout import model_parallel
from nemo_chameleon.method.embeddings import ShardedEmbedding
from nemo_chameleon.method.weights import chameleon_weights
from nemo_chameleon.mixture.embeddings_file import load_embeddings
from nemo_chameleon.models import checkpoint
from nemo_chameleon.models.gpt import build_gpt
from project import write_config
from ranks import on_ranks

LAYOUTS = {
    "one process": {},
    "again": {},
    "TP2": {"tensor": 2},
    "TP2 + SP": {"tensor": 2, "sequence": True},
    "PP2": {"pipeline": 2},
    "PP2, two virtual stages": {"pipeline": 2, "virtual": 2},
    "DP2": {"data": 2},
    "CP2": {"context": 2},
    "TP2 x PP2": {"tensor": 2, "pipeline": 2},
    "TP2 + SP x CP2": {"tensor": 2, "sequence": True, "context": 2},
}


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory, alone: None) -> list[Path]:
    """Return a configuration, and a checkpoint of its proxy of four layers."""
    folder = tmp_path_factory.mktemp("layouts")
    config_file = write_config(corpus, folder)
    # On CPUs the stages of a pipeline cannot share one embedding table.
    config = load_config(config_file, ["proxy.model.share_embeddings_and_output_weights=false"])
    with model_parallel(config.proxy.parallel, seed=3):
        gpt = build_gpt(config.proxy, 512, for_training=False)
        path = checkpoint.save(folder / "proxy", 1, {"identity": {}}, gpt, None, None)
    return [config_file, path]


Embeddings = list[dict[str, ShardedEmbedding]]


@pytest.fixture(scope="module")
def embedded(trained: list[Path]) -> dict[str, Embeddings]:
    """Return raw and normalised embeddings after two of the layers, by the name of the layout."""
    folder = trained[0].parent
    by_ranks: dict[int, dict[str, dict[str, Any]]] = {}
    for name, layout in LAYOUTS.items():
        ranks = math.prod(layout.get(way, 1) for way in ("tensor", "pipeline", "context", "data"))
        own = {way: size for way, size in layout.items() if way != "data"}
        by_ranks.setdefault(ranks, {})[name] = own
    for ranks, layouts in by_ranks.items():
        on_ranks(ranks, embed_in_each, layouts, *map(str, trained), folder)
    return {name: load_embeddings(folder / f"{name}.safetensors") for name in LAYOUTS}


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "one process"])
def test_embeddings_and_weights_in_any_layout(embedded: dict[str, Embeddings], name: str) -> None:
    """In every layout embeddings are those of one process to 1e-5, and weights to 1e-6.

    This holds after the middle layer and after the last one, for raw token states and for
    normalised ones. The share of the heaviest tokens is the same too.
    """
    for one, other in zip(embedded["one process"], embedded[name], strict=True):
        scale = max(np.abs(shards.means).max() for shards in one.values())
        for domain, shards in one.items():
            np.testing.assert_array_equal(other[domain].tokens, shards.tokens)
            np.testing.assert_allclose(other[domain].means, shards.means, atol=1e-5 * scale, rtol=0)
            heaviest, expected = other[domain].heaviest, shards.heaviest
            assert heaviest is not None
            assert expected is not None
            assert heaviest.share == pytest.approx(expected.share, abs=2e-3)
            assert heaviest.norm == pytest.approx(expected.norm, rel=1e-5)
            assert (heaviest.token, heaviest.position) == (expected.token, expected.position)
        weights = [
            chameleon_weights(np.stack([shards.embedding for shards in part.values()]))
            for part in (one, other)
        ]
        np.testing.assert_allclose(weights[0], weights[1], atol=1e-6)


def test_one_layout_gives_the_same_bytes(embedded: dict[str, Embeddings]) -> None:
    """Two runs in one layout agree to the last bit."""
    for one, again in zip(embedded["one process"], embedded["again"], strict=True):
        assert {n: s.digest() for n, s in one.items()} == {n: s.digest() for n, s in again.items()}
