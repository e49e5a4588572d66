"""leverage.py: the paper's numbers, and what the calibrated preset promises."""

import json
from pathlib import Path

import numpy as np
import pytest

from nemo_chameleon import leverage

GOLDEN = json.loads((Path(__file__).parent / "data" / "krls.json").read_text())
CASES = {case["name"]: case for case in GOLDEN["cases"]}


def drawn_alike(k: int, d: int = 64, seed: int = 0) -> np.ndarray:
    """Domains whose embeddings follow one distribution; norms are 0.7 to 1.3 of their mean."""
    generator = np.random.default_rng(seed)
    return generator.normal(size=(k, d)) * generator.uniform(0.7, 1.3, size=(k, 1))


@pytest.mark.parametrize("name", CASES)
def test_paper_preset_meets_the_published_semantics(name: str) -> None:
    """Affinity, scores and both weights equal the authors' semantics to 1e-10."""
    case = CASES[name]
    x, ridge = np.array(case["embeddings"]), case["lambda_reg"]
    scores = leverage.leverage_scores(x, ridge=ridge)
    paper = leverage.choose_preset("paper", ridge=ridge)
    for mine, theirs in (
        (leverage.affinity_matrix(x), case["affinity"]),
        (scores, case["raw_scores"]),
        (scores / scores.sum(), case["scores"]),
        (leverage.weights_from_scores(scores, "pretrain", paper), case["pretrain_T5"]),
        (leverage.weights_from_scores(scores, "finetune", paper), case["finetune_T02"]),
    ):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-10)


def test_published_affinity() -> None:
    """The paper's own affinity gives its weights; the calibrated ones are within 0.08 of them."""
    published = GOLDEN["published_affinity"]
    scores = leverage.scores_from_affinity(published["affinity"], ridge=10.0)
    paper = leverage.weights_from_scores(scores, "pretrain", "paper")
    np.testing.assert_allclose(paper, published["pretrain_T5"], rtol=0, atol=1e-10)
    calibrated = leverage.weights_from_scores(
        leverage.scores_from_affinity(published["affinity"], relative_ridge=0.3)
    )
    assert np.abs(calibrated - paper).sum() / 2 < 0.08


def test_three_domains_by_hand() -> None:
    """Embeddings 1, 0, -1 with λk = 2 score 1/4, 0, 1/4."""
    # K = x xᵀ has the one eigenvector x/√2 with eigenvalue 2, so S_i = x_i²/2 · 2/(2 + λk).
    scores = leverage.leverage_scores([[1.0], [0.0], [-1.0]], ridge=2 / 3)
    np.testing.assert_allclose(scores, [0.25, 0.0, 0.25], atol=1e-15)
    # Finetuning in proportion to S: the middle domain gets next to nothing, were it not for the
    # floor: exp(entropy) of (1/2, 0, 1/2) is 2 of 3, above one half.
    weights = leverage.weights_from_scores(scores, "finetune")
    np.testing.assert_allclose(weights, [0.5, 0.0, 0.5], atol=1e-11)


@pytest.mark.parametrize(("k", "d"), [(7, 64), (64, 7), (5, 5)])
def test_both_gram_matrices_give_the_same_scores(k: int, d: int) -> None:
    """Through d × d or k × k, whichever is smaller, scores are those of the definition."""
    x = drawn_alike(k, d)
    kernel = leverage.affinity_matrix(x)
    direct = np.diagonal(kernel @ np.linalg.inv(kernel + k * 2.0 * np.eye(k)))
    np.testing.assert_allclose(leverage.leverage_scores(x, ridge=2.0), direct, atol=1e-12)


def test_embeddings_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a memory map, in blocks of three rows and a rest, scores are those of the array."""
    x = drawn_alike(50, 8).astype(np.float32)
    whole = leverage.leverage_scores(x, relative_ridge=0.3)
    np.save(tmp_path / "x.npy", x)
    monkeypatch.setattr(leverage, "_BLOCK", 3 * 8)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_allclose(
        leverage.leverage_scores(mapped, relative_ridge=0.3), whole, rtol=1e-12
    )
    x[40, 3] = np.inf
    with pytest.raises(ValueError, match="domain 40 is not finite"):
        leverage.leverage_scores(x, relative_ridge=0.3)


@pytest.mark.parametrize("objective", leverage.OBJECTIVES)
def test_calibrated_weights_do_not_move(objective: str) -> None:
    """Scaling, shifting and rotating embeddings moves no weight; reordering domains reorders."""
    x = drawn_alike(9, 16)
    weights = leverage.chameleon_weights(x, objective=objective)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(16, 16)))[0]
    for moved in (x * 1e-6, x * 1e6, x + x[3], x @ rotation):
        np.testing.assert_allclose(
            leverage.chameleon_weights(moved, objective=objective), weights, rtol=0, atol=1e-9
        )
    order = np.random.default_rng(2).permutation(9)
    np.testing.assert_allclose(
        leverage.chameleon_weights(x[order], objective=objective), weights[order], atol=1e-12
    )


def test_character_does_not_depend_on_the_number_of_domains() -> None:
    """On domains drawn alike the effective share of domains is the same for 22 and for 1000."""
    shares = [
        leverage.effective_domains(leverage.chameleon_weights(drawn_alike(k, 500))) / k
        for k in (22, 1000)
    ]
    assert shares[0] == pytest.approx(shares[1], abs=0.03)


def test_floor_on_effective_domains_is_met_exactly_and_said() -> None:
    """Weights that would concentrate are tempered until exp(entropy)/k is the floor, no further."""
    scores = np.array([1e-6, 1.0, 1.0, 1.0])
    weights, tempering = leverage.tempered_weights(scores)
    assert leverage.effective_domains(weights) == pytest.approx(0.5 * 4, abs=1e-9)
    assert 0 < tempering < 1
    assert np.argmax(weights) == 0
    _, untouched = leverage.tempered_weights([0.2, 0.3, 0.25])
    assert untouched == 1.0


def test_nothing_overflows() -> None:
    """The paper's softmax of 1/S on scores where a naive exponential is infinite stays finite."""
    weights = leverage.weights_from_scores(np.full(1000, 1e-4), "pretrain", "paper")
    np.testing.assert_allclose(weights, 1e-3)
    for scale in (1e-300, 1e300):
        x = drawn_alike(5) * scale
        assert np.isfinite(leverage.leverage_scores(x, relative_ridge=0.3)).all()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: leverage.leverage_scores([[1.0], [np.nan]], ridge=1.0), "domain 1 is not finite"),
        (lambda: leverage.leverage_scores(np.ones((0, 3)), ridge=1.0), "not of shape"),
        (lambda: leverage.leverage_scores([[1.0], [2.0]], ridge=-1.0), "ridge=-1.0"),
        (lambda: leverage.leverage_scores([[1.0], [2.0]]), "give one of"),
        (lambda: leverage.chameleon_weights(np.ones((3, 4))), "all the same"),
        (lambda: leverage.weights_from_scores([0.1, -0.1]), "not negative"),
        (lambda: leverage.weights_from_scores([0.0, 0.0]), "all scores are zero"),
        (lambda: leverage.weights_from_scores([0.1], "test"), "objective='test'"),
        (lambda: leverage.choose_preset("papers"), "preset='papers'"),
        (lambda: leverage.choose_preset("paper", exponent=1.0), "has no exponent"),
        (lambda: leverage.choose_preset(min_effective=1.0), "outside"),
        (lambda: leverage.scores_from_affinity([[1.0, 2.0]], ridge=1.0), "square"),
        (lambda: leverage.scores_from_affinity([[1, 2], [0, 1]], ridge=1.0), "symmetric"),
    ],
)
def test_wrong_input_is_named(call: object, says: str) -> None:
    """What cannot be computed is a ValueError that says what is wrong."""
    with pytest.raises(ValueError, match=says):
        call()  # type: ignore[operator]
