"""method/diagnostics.py: a warning is given where the method is blind, and only there."""

from dataclasses import replace

import numpy as np
import pytest

from nemo_chameleon.method.diagnostics import caveats, heavy_tokens
from nemo_chameleon.method.embeddings import HeaviestTokens
from nemo_chameleon.method.leverage import leverage_scores
from nemo_chameleon.method.weights import weights_from_scores

GENERATOR = np.random.default_rng(0)
PLAIN = GENERATOR.normal(size=(6, 32)) * np.linspace(0.5, 1.5, 6)[:, None]


def about(embeddings: np.ndarray, weights: np.ndarray | None = None) -> list[str]:
    """Return the warnings about a mixture over domains a, b, c, ..."""
    scores = leverage_scores(embeddings, relative_ridge=0.3)
    if weights is None:
        weights = weights_from_scores(scores)
    return caveats("abcdefgh"[: len(embeddings)], embeddings, scores, weights)


def test_nothing_to_say() -> None:
    """Six distinct domains at different distances give no warning."""
    assert about(PLAIN) == []


def test_two_domains() -> None:
    """Two domains always have equal scores, and this is the only warning."""
    (only,) = about(PLAIN[:2])
    assert "two domains" in only


def test_heavy_tokens() -> None:
    """A mean that its heaviest tokens decide is named with layer, token and remedy."""
    light = HeaviestTokens(0.02, 40.0, 9, 3)
    heavy = HeaviestTokens(0.93, 25_957.0, 504, 0)
    assert heavy_tokens({"a": light, "b": light}, {"layer": 15}, {}) == []
    (only,) = heavy_tokens(
        {"a": light, "b": heavy, "c": replace(heavy, share=0.2)},
        {"layer": 15},
        {"b": "The"},
        {"normalize_states": "chameleon.normalize_states"},
    )
    assert only.startswith(
        "in the output of layer 15, 1 % of the tokens give 93% of the squared norm of 'b''s mean, "
        "and more than 10% in 1 more; the heaviest one is token 504 'The' at position 0"
    )
    assert only.endswith("set chameleon.normalize_states=true")
    (only,) = heavy_tokens({"b": heavy}, {"layer": 15, "normalize_states": True}, {})
    assert only.endswith("use another layer")


def test_equal_scores() -> None:
    """Domains at the corners of a regular simplex cannot be told apart by their scores."""
    (only,) = about(np.eye(5))
    assert "all scores are within 0.0%" in only


def test_one_domain_has_most() -> None:
    """A domain that has more than half of the weight is named."""
    (only,) = about(PLAIN, np.array([0.1, 0.6, 0.1, 0.1, 0.05, 0.05]))
    assert only.startswith("'b' alone has 60%")


def test_domains_that_are_the_same() -> None:
    """Two halves of one domain are named as one and the same."""
    twins = np.vstack([PLAIN, PLAIN[2] + 1e-4])
    (only,) = about(twins)
    assert only.startswith(
        "the proxy cannot tell these domains apart: 'c' and 'g'. Together they get more"
    )


@pytest.mark.parametrize(("share", "expected"), [(0.009, 1), (0.011, 0)])
def test_a_hundredth_of_the_usual_distance_is_alike(share: float, expected: int) -> None:
    """Domains nearer than a hundredth of the usual distance count as the same.

    This is so even when their embeddings are known exactly.
    """
    step = np.zeros(32)
    step[0] = share * np.sqrt(np.mean(np.sum((PLAIN - PLAIN.mean(axis=0)) ** 2, axis=1)))
    said = about(np.vstack([PLAIN, PLAIN[2] + step]))
    assert sum("cannot tell these domains apart" in sentence for sentence in said) == expected


def test_two_draws_from_one_domain_are_the_same() -> None:
    """Embeddings no farther apart than their errors are named. Those twice as far apart are not."""
    error = 0.3**2
    apart = GENERATOR.normal(size=32)
    apart *= np.sqrt(2 * error) / np.linalg.norm(apart)
    scores, weights = np.linspace(0.2, 0.3, 7), np.full(7, 1 / 7)
    for times, expected in ((0.9, 1), (2.0, 0)):
        twins = np.vstack([PLAIN, PLAIN[2] + times * apart])
        said = caveats("abcdefg", twins, scores, weights, error)
        assert sum("cannot tell these domains apart" in sentence for sentence in said) == expected


def test_many_twins_are_counted() -> None:
    """Of many pairs of equal domains three are named, and the others are counted."""
    same = np.repeat(PLAIN, 8, axis=0)
    scores = np.linspace(0.2, 0.3, 48)
    (only,) = caveats([str(i) for i in range(48)], same, scores, np.full(48, 1 / 48))
    assert "'0' and '1', '0' and '2', '0' and '3', and 165 more pairs" in only


def test_rank() -> None:
    """A domain that lies between two others leaves a dimension unused."""
    between = np.vstack([PLAIN, (PLAIN[0] + PLAIN[5]) / 2])
    (only,) = about(between.astype(np.float32))
    assert only.startswith("the embeddings span 5 dimensions of 6 possible ones")
    # With noise of a tenth on every row there are six dimensions, and the sixth is noise.
    noisy = between + GENERATOR.normal(size=between.shape) * 0.1 / np.sqrt(32)
    scores, weights = np.linspace(0.2, 0.3, 7), np.full(7, 1 / 7)
    (only,) = caveats("abcdefg", noisy, scores, weights, 0.1**2)
    assert only.startswith("the embeddings span 5 dimensions of 6 possible ones")


@pytest.mark.parametrize("k", [3, 2500])
def test_any_number_of_domains(k: int) -> None:
    """Three domains and more domains than are compared in pairs both give a result."""
    x = np.random.default_rng(1).normal(size=(k, 16))
    scores = leverage_scores(x, relative_ridge=0.3)
    caveats([str(i) for i in range(k)], x, scores, weights_from_scores(scores))
