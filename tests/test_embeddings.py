"""method/embeddings.py: embeddings in shards; mixture/embeddings_file.py: their file."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from nemo_chameleon.method.embeddings import HeaviestTokens, ShardedEmbedding, shard_count
from nemo_chameleon.mixture.embeddings_file import load_embeddings, save_embeddings
from nemo_chameleon.utils.errors import UserError


def shards(*means: float, tokens: tuple[int, ...] = (1, 3)) -> ShardedEmbedding:
    """Return shards of one dimension."""
    return ShardedEmbedding(np.array(means, dtype=np.float32)[:, None], np.array(tokens))


def test_embedding_is_the_mean_over_tokens() -> None:
    """Means 0 and 4 over one and three tokens make 3."""
    assert shards(0.0, 4.0).embedding.tolist() == [3.0]


def test_joined() -> None:
    """One token of 0 and three more of 4 are four tokens of 3."""
    both = shards(0.0, 4.0).joined(shards(4.0, 4.0, tokens=(3, 5)))
    assert both.means[:, 0].tolist() == [3.0, 4.0]
    assert both.tokens.tolist() == [4, 8]


def test_joined_heaviest_tokens() -> None:
    """The share of the heaviest tokens is the mean by tokens, and the heaviest token stays."""
    one, other = HeaviestTokens(0.1, 5.0, 7, 0), HeaviestTokens(0.4, 3.0, 8, 9)
    both = replace(shards(0.0, 4.0), heaviest=one).joined(
        replace(shards(4.0, 4.0, tokens=(3, 5)), heaviest=other)
    )
    assert both.heaviest is not None
    assert both.heaviest.share == pytest.approx(0.3)
    assert both.heaviest == replace(one, share=both.heaviest.share)


def test_no_more_shards_than_windows() -> None:
    """Every shard has at least one window, and there are at most 32 shards."""
    assert [shard_count(n) for n in (1, 31, 32, 2048)] == [1, 31, 32, 32]


def test_noise_is_that_of_the_mean() -> None:
    """The mean of 32 shards of known variance has a 32nd of that variance."""
    means = np.random.default_rng(0).normal(size=(32, 10_000)).astype(np.float32)
    assert ShardedEmbedding(means, np.full(32, 7)).noise() == pytest.approx(10_000 / 32, rel=0.02)
    assert shards(1.0, tokens=(3,)).noise() == 0.0


def test_file_round_trip_is_exact(tmp_path: Path) -> None:
    """Two proxies' embeddings of domains with slashes in their names are read back bit for bit."""
    heaviest = HeaviestTokens(1 / 3, 25_957.123, 49_151, 511)
    written = [
        {"a/b": replace(shards(0.1, 1 / 3), heaviest=heaviest), "c": shards(1e-30, 2.0)},
        {"a/b": shards(5.0, 6.0), "c": shards(7.0, 8.0)},
    ]
    save_embeddings(tmp_path / "e.safetensors", written)
    read = load_embeddings(tmp_path / "e.safetensors")
    assert len(read) == 2
    for before, after in zip(written, read, strict=True):
        assert before.keys() == after.keys()
        for name in before:
            assert before[name].means.tobytes() == after[name].means.tobytes()
            assert before[name].tokens.tolist() == after[name].tokens.tolist()
            assert before[name].heaviest == after[name].heaviest


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (None, "cannot read the embeddings"),
        ({}, "has no domain embeddings"),
        ({"a": np.ones(3)}, "has no domain embeddings"),
        ({"0/means/a": np.ones((2, 3))}, "has no domain embeddings"),
        ({"0/means/a": np.ones((2, 3)), "0/tokens/a": np.ones(3)}, "domain 'a' is damaged"),
        ({"0/means/a": np.ones((2, 3)), "0/tokens/a": np.zeros(2)}, "domain 'a' is damaged"),
        ({"1/means/a": np.ones((2, 3)), "1/tokens/a": np.ones(2)}, "has no domain embeddings"),
    ],
)
def test_files_that_are_none(
    tmp_path: Path, tensors: dict[str, np.ndarray] | None, says: str
) -> None:
    """A file that is missing or holds something else is an error that names the file."""
    path = tmp_path / "e.safetensors"
    if tensors is not None:
        save_file(tensors, path)
    with pytest.raises(UserError, match=says) as error:
        load_embeddings(path)
    assert str(path) in str(error.value)
    if tensors is None:
        path.write_bytes(b"no safetensors at all")
        with pytest.raises(UserError, match=says):
            load_embeddings(path)
