"""method/leverage.py: the paper's affinity and scores, in every way to compute them."""

import json
from pathlib import Path

import numpy as np
import pytest

from nemo_chameleon.method import leverage
from nemo_chameleon.method.leverage import (
    affinity_matrix,
    leverage_scores,
    scores_from_affinity,
)
from project import drawn_alike

GOLDEN = json.loads((Path(__file__).parent / "data" / "krls.json").read_text())
CASES = {case["name"]: case for case in GOLDEN["cases"]}


@pytest.mark.parametrize("name", CASES)
def test_the_papers_numbers(name: str) -> None:
    """Affinity and scores equal the published ones to 1e-10."""
    case = CASES[name]
    x = np.array(case["embeddings"])
    scores = leverage_scores(x, ridge=case["lambda_reg"])
    for mine, theirs in (
        (affinity_matrix(x), case["affinity"]),
        (scores, case["raw_scores"]),
        (scores / scores.sum(), case["scores"]),
    ):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-10)


def test_three_domains_by_hand() -> None:
    """Embeddings 1, 0 and -1 have scores 1/4, 0 and 1/4 at λk = 2."""
    # K = x xᵀ has the one eigenvector x/√2 with eigenvalue 2, so S_i = x_i²/2 · 2/(2 + λk).
    scores = leverage_scores([[1.0], [0.0], [-1.0]], ridge=2 / 3)
    np.testing.assert_allclose(scores, [0.25, 0.0, 0.25], atol=1e-15)


def test_affinity_by_hand() -> None:
    """The affinity holds inner products of the embeddings, minus their mean if they are centred."""
    assert affinity_matrix([[3.0], [1.0]], center=False).tolist() == [[9, 3], [3, 1]]
    assert affinity_matrix([[3.0], [1.0]]).tolist() == [[1, -1], [-1, 1]]


@pytest.mark.parametrize(("k", "d"), [(7, 64), (64, 7), (5, 5)])
def test_both_gram_matrices_give_the_same_scores(k: int, d: int) -> None:
    """Scores are those of the definition, through a d × d or a k × k matrix."""
    x = drawn_alike(k, d)
    kernel = affinity_matrix(x)
    direct = np.diagonal(kernel @ np.linalg.inv(kernel + k * 2.0 * np.eye(k)))
    np.testing.assert_allclose(leverage_scores(x, ridge=2.0), direct, atol=1e-12)
    np.testing.assert_allclose(scores_from_affinity(kernel, ridge=2.0), direct, atol=1e-12)


def test_embeddings_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of a memory map that is read in blocks are those of the array in memory."""
    x = drawn_alike(50, 8).astype(np.float32)
    whole = leverage_scores(x, relative_ridge=0.3)
    np.save(tmp_path / "x.npy", x)
    monkeypatch.setattr(leverage, "_BLOCK", 3 * 8)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_allclose(leverage_scores(mapped, relative_ridge=0.3), whole, rtol=1e-12)
    x[40, 3] = np.inf
    with pytest.raises(ValueError, match="domain 40 is not finite"):
        leverage_scores(x, relative_ridge=0.3)


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_nothing_overflows(scale: float) -> None:
    """Scores do not change where the squares of embeddings overflow or underflow."""
    x = drawn_alike(5)
    np.testing.assert_allclose(
        leverage_scores(x * scale, relative_ridge=0.3),
        leverage_scores(x, relative_ridge=0.3),
        rtol=1e-9,
    )


@pytest.mark.parametrize("shape", [(7, 64), (64, 7)])
def test_ridges_of_any_size(shape: tuple[int, int]) -> None:
    """Scores stay between 0 and 1 and near those of an exact solution at any size of the ridge."""
    x = drawn_alike(*shape)
    centred = x - x.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    for ridge in (1e-12, 1e-6, 1.0, 1e6):
        shrunk = s**2 / (s**2 + shape[0] * ridge * np.mean(np.sum(centred**2, axis=1)))
        expected = u[:, : min(shape)] ** 2 @ shrunk[: min(shape)]
        mine = leverage_scores(x, relative_ridge=ridge)
        np.testing.assert_allclose(mine, expected, atol=1e-3 if ridge < 1e-9 else 1e-9)
    for tiny in (1e-30, 1e-300):
        mine = leverage_scores(x * 1e200, ridge=tiny)
        assert ((mine >= 0) & (mine <= 1)).all()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: leverage_scores([[1.0], [np.nan]], ridge=1.0), "domain 1 is not finite"),
        (lambda: leverage_scores(np.ones((0, 3)), ridge=1.0), "not of shape"),
        (lambda: leverage_scores([[1.0], [2.0]], ridge=-1.0), "ridge=-1.0"),
        (lambda: leverage_scores([[1.0], [2.0]]), "give exactly one of"),
        (lambda: leverage_scores(np.ones((3, 4)), relative_ridge=1.0), "all the same"),
        (lambda: scores_from_affinity([[1.0, 2.0]], ridge=1.0), "square"),
        (lambda: scores_from_affinity([[1, 2], [0, 1]], ridge=1.0), "symmetric"),
        (lambda: scores_from_affinity([[np.nan]], ridge=1.0), "NaN"),
    ],
)
def test_wrong_input_is_named(call: object, says: str) -> None:
    """Input that has no scores is a ValueError that says what is wrong."""
    with pytest.raises(ValueError, match=says):
        call()  # type: ignore[operator]
