"""embedding/pooling.py: an embedding is the mean hidden state of a domain's tokens alone."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core.models.gpt import GPTModel

from nemo_chameleon.config.schema import Config
from nemo_chameleon.data.domain import Domain
from nemo_chameleon.data.indexed import open_indexed
from nemo_chameleon.distributed.layout import model_parallel
from nemo_chameleon.embedding import middle_layer, pooling
from nemo_chameleon.embedding.hooks import Part
from nemo_chameleon.embedding.megatron import megatron_extractor
from nemo_chameleon.embedding.sums import DomainSums
from nemo_chameleon.method import embeddings
from nemo_chameleon.method.embeddings import ShardedEmbedding
from nemo_chameleon.models.gpt import build_gpt
from nemo_chameleon.utils.errors import UserError


@pytest.fixture
def gpt(config: Config, alone: None) -> Iterator[GPTModel]:
    """Yield the configured proxy with four untrained layers."""
    with model_parallel(config.proxy.parallel, seed=3):
        yield build_gpt(config.proxy, 512, for_training=False)


@pytest.fixture
def domains(config: Config) -> Mapping[str, Domain]:
    """Return the domains of the configuration."""
    return open_indexed(config.data.domains, config.data.split)


def embed(
    gpt: GPTModel, domains: Mapping[str, Domain], **changes: Any
) -> dict[str, ShardedEmbedding]:
    """Embed with small settings."""
    settings: dict[str, Any] = {"layers": (2,), "samples": 10, "sample_length": 32}
    settings |= {"micro_batch_size": 4, "seed": 1, "cross_documents": False}
    with megatron_extractor(gpt) as extractor:
        embedded = pooling.embed(extractor, domains, **{**settings, **changes})
    assert len(embedded) == 1
    return embedded[0]


def test_the_papers_layer() -> None:
    """The middle layer is layer 3 of 6 and layer 6 of 12, counted from 1, and the first of one."""
    assert [middle_layer(n) for n in (1, 6, 7, 12)] == [1, 3, 4, 6]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("layer", [1, 2, 4])
def test_equals_the_mean_over_an_unbroken_forward_pass(
    gpt: GPTModel, domains: Mapping[str, Domain], layer: int, normalize: bool
) -> None:
    """Padded batches that stop at the layer give the mean over whole passes of single windows.

    This holds for raw token states, and for states that are divided by their root mean squares.
    """
    outputs = []
    handle = gpt.decoder.layers[layer - 1].register_forward_hook(
        lambda _module, _arguments, output: outputs.append(output[0][:, 0])
    )
    for index in range(10):
        window = torch.from_numpy(domains["legal"].window(index, 32, seed=1).tokens)[None]
        with torch.no_grad():
            gpt(window, torch.arange(window.shape[1])[None], None)
    handle.remove()
    states = torch.cat(outputs).detach().double()
    if normalize:
        states /= states.square().mean(1, keepdim=True).sqrt()
    assert len({len(output) for output in outputs}) > 1, "no window was padded: a weak test"
    legal, wanted = {"legal": domains["legal"]}, {"layers": (layer,), "normalize_states": normalize}
    mine = embed(gpt, legal, **wanted)["legal"]
    np.testing.assert_allclose(mine.embedding, states.mean(0), rtol=1e-5, atol=1e-6)


def test_states_of_zero(gpt: GPTModel, domains: Mapping[str, Domain]) -> None:
    """A model whose states are all zero gives embeddings of zero, and no division by zero."""
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.zero_()
    assert not embed(gpt, {"legal": domains["legal"]})["legal"].embedding.any()


def sums_of(windows: int, normalize_states: bool) -> DomainSums:
    """Return sums over states of width 16 after layer 1, with one shard per window."""
    return DomainSums(
        "d",
        [1],
        range(windows),
        shards=windows,
        hidden_size=16,
        normalize_states=normalize_states,
        device=torch.device("cpu"),
    )


def test_the_share_of_the_heaviest_tokens(alone: None) -> None:
    """The share is that of an exact sort, also where the heaviest tokens are not much heavier."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(16, generator=generator)
    states = torch.randn(1000, 4, 16, generator=generator)
    states *= 17 / states.norm(dim=-1, keepdim=True)
    states[::100] = 31.5 * direction / direction.norm()
    tokens = torch.arange(4000).view(4, 1000)
    sums = sums_of(4, normalize_states=False)
    part = Part(1, states, torch.arange(1000))
    sums.add(part, torch.arange(4), tokens, torch.ones(4, 1000, dtype=torch.bool))
    (embedded,) = sums.embeddings()
    flat = states.flatten(0, 1).double()
    mean, heavy = flat.sum(0), flat[flat.norm(dim=1).argsort(descending=True)[:40]].sum(0)
    assert embedded.heaviest is not None
    assert embedded.heaviest.share == pytest.approx(float(heavy @ mean / (mean @ mean)), rel=1e-4)
    assert embedded.heaviest.share > 0.5


def heavy_first_token(gpt: GPTModel, factor: float) -> None:
    """Make the hidden states of each window's first token large, as well-trained models do."""
    with torch.no_grad():
        gpt.embedding.position_embeddings.weight[0] *= factor


def test_a_heavy_token_counts_like_any_other(gpt: GPTModel, domains: Mapping[str, Domain]) -> None:
    """A first token whose states are large moves a raw mean with the windows' length, and a
    normalised one hardly.
    """
    heavy_first_token(gpt, 1e4)
    distances = []
    for normalize in (False, True):
        short, long = (
            embed(gpt, domains, normalize_states=normalize, sample_length=length, samples=64)
            for length in (8, 32)
        )
        between = np.linalg.norm(long["code"].embedding - long["prose"].embedding)
        moved = np.linalg.norm(long["code"].embedding - short["code"].embedding)
        distances.append(moved / between)
    assert distances[0] > 10 * distances[1]


def test_the_heaviest_tokens_are_found(gpt: GPTModel, domains: Mapping[str, Domain]) -> None:
    """A raw mean that its first tokens decide says so, with the token and its position."""
    legal = {"legal": domains["legal"]}
    usual = embed(gpt, legal, normalize_states=False, samples=64)["legal"].heaviest
    assert usual is not None
    assert usual.share < 0.05
    heavy_first_token(gpt, 1e4)
    raw = embed(gpt, legal, normalize_states=False, samples=64)["legal"].heaviest
    normalized = embed(gpt, legal, normalize_states=True, samples=64)["legal"].heaviest
    assert raw is not None
    assert normalized is not None
    assert raw.share > 0.3
    assert normalized.share < 0.05
    assert raw.position == normalized.position == 0
    first = {int(domains["legal"].window(i, 32, seed=1).tokens[0]) for i in range(64)}
    assert raw.token in first
    assert raw.norm == normalized.norm > 100 * usual.norm


def test_nothing_above_the_layer_is_computed(gpt: GPTModel, domains: Mapping[str, Domain]) -> None:
    """Neither the layers above the hooked one nor the output layer ever run."""
    ran = []
    above = [*gpt.decoder.layers[2:], gpt.output_layer]
    handles = [part.register_forward_hook(lambda *_: ran.append(1)) for part in above]
    embed(gpt, domains)
    for handle in handles:
        handle.remove()
    assert not ran


def test_one_domain_does_not_change_anothers_embedding(
    gpt: GPTModel, domains: Mapping[str, Domain]
) -> None:
    """A domain embedded alone has the same bytes as among others."""
    together, by_itself = embed(gpt, domains), embed(gpt, {"legal": domains["legal"]})
    assert together["legal"].means.tobytes() == by_itself["legal"].means.tobytes()


def test_shards_are_of_every_so_many_windows(
    gpt: GPTModel, domains: Mapping[str, Domain], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With four shards of ten windows, the second is the mean over windows 1, 5 and 9."""
    monkeypatch.setattr(embeddings, "SHARDS", 4)
    legal = {"legal": domains["legal"]}
    four = embed(gpt, legal)["legal"]
    monkeypatch.setattr(embeddings, "SHARDS", 1)
    alone = [embed(gpt, legal, samples=1, first=index)["legal"] for index in (1, 5, 9)]
    joined = alone[0].joined(alone[1]).joined(alone[2])
    assert four.tokens[1] == joined.tokens[0]
    np.testing.assert_allclose(four.means[1], joined.means[0], rtol=1e-5, atol=1e-6)


def test_more_windows_go_on_where_the_first_ended(
    gpt: GPTModel, domains: Mapping[str, Domain]
) -> None:
    """The embeddings of 32 windows and of the 64 after them join to that of 96, shard by shard."""
    together = embed(gpt, domains, samples=96)
    first, after = embed(gpt, domains, samples=32), embed(gpt, domains, samples=64, first=32)
    for name in domains:
        parts = first[name].joined(after[name])
        np.testing.assert_array_equal(parts.tokens, together[name].tokens)
        np.testing.assert_allclose(parts.means, together[name].means, rtol=1e-5, atol=1e-6)


def test_windows_may_cross_documents(gpt: GPTModel, domains: Mapping[str, Domain]) -> None:
    """With cross_documents=True short documents are no longer windows of their own."""
    legal = {"legal": domains["legal"]}
    apart, across = embed(gpt, legal), embed(gpt, legal, cross_documents=True)
    assert across["legal"].tokens.sum() == 10 * 32 > apart["legal"].tokens.sum()


def test_model_is_left_as_it_was(gpt: GPTModel, domains: Mapping[str, Domain]) -> None:
    """After embedding, a forward pass through the model gives logits again."""
    gpt.decoder.layers[1].train()
    modes = [module.training for module in gpt.modules()]
    embed(gpt, domains)
    assert [module.training for module in gpt.modules()] == modes
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    assert gpt(tokens, torch.arange(8)[None], None).shape == (1, 8, 512)


def test_hidden_state_that_is_not_finite(gpt: GPTModel, domains: Mapping[str, Domain]) -> None:
    """A NaN in the model is an error that names the domain and the window."""
    with torch.no_grad():
        gpt.decoder.layers[0].mlp.linear_fc1.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="domain 'code': the hidden state of window 0"):
        embed(gpt, domains)


def test_norms_that_overflow(alone: None) -> None:
    """Finite states whose norm is infinite are refused, because normalised they would be zero."""
    sums = sums_of(4, normalize_states=True)
    states = torch.ones(10, 4, 16)
    states[3, 2] = 1e30
    tokens = torch.zeros(4, 10, dtype=torch.int64)
    sums.add(Part(1, states, torch.arange(10)), torch.arange(4), tokens, tokens == 0)
    with pytest.raises(UserError, match="domain 'd': the hidden state of window 2 is not finite"):
        sums.require_finite()


def test_layer_that_is_not_there(gpt: GPTModel, domains: Mapping[str, Domain]) -> None:
    """A layer beyond the last one is an error."""
    with pytest.raises(UserError, match="layer 5"):
        embed(gpt, domains, layers=(5,))
