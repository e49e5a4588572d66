"""method/weights.py: the paper's weights, and what the calibrated preset promises."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_chameleon.method import weights
from nemo_chameleon.method.leverage import leverage_scores, scores_from_affinity
from project import drawn_alike

GOLDEN = json.loads((Path(__file__).parent / "data" / "krls.json").read_text())
CASES = {case["name"]: case for case in GOLDEN["cases"]}


@pytest.mark.parametrize("name", CASES)
def test_the_papers_numbers(name: str) -> None:
    """Both objectives' weights equal the published ones to 1e-10, whatever the scores sum to."""
    case = CASES[name]
    scores = leverage_scores(np.array(case["embeddings"]), ridge=case["lambda_reg"])
    for given_scores in (scores, scores / scores.sum()):
        for objective, theirs in (("pretrain", "pretrain_T5"), ("finetune", "finetune_T02")):
            mine = weights.weights_from_scores(given_scores, objective, "paper")
            np.testing.assert_allclose(mine, case[theirs], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("objective", "exponent", "distance"),
    [
        *(("pretrain", None, 0.111), ("pretrain", 0.75, 0.072), ("pretrain", 1.0, 0.040)),
        *(("finetune", None, 0.012), ("finetune", 0.75, 0.041)),
    ],
)
def test_distance_to_the_paper_on_its_own_affinity(
    objective: str, exponent: float | None, distance: float
) -> None:
    """On the published affinity the calibrated weights have a known distance to the paper's."""
    published = GOLDEN["published_affinity"]
    scores = scores_from_affinity(published["affinity"], ridge=10.0)
    paper = weights.weights_from_scores(scores, objective, "paper")
    if objective == "pretrain":
        np.testing.assert_allclose(paper, published["pretrain_T5"], rtol=0, atol=1e-10)
    calibrated = weights.weights_from_scores(
        scores_from_affinity(published["affinity"], relative_ridge=0.3),
        objective,
        weights.choose_preset(exponent=exponent),
    )
    assert np.abs(calibrated - paper).sum() / 2 == pytest.approx(distance, abs=5e-4)


def test_by_hand() -> None:
    """Scores 1/2, 1/3 and 1/5 have odds 1, 1/2 and 1/4, so that weights are sevenths at γ = 1."""
    preset = weights.choose_preset(exponent=1.0)
    for objective, expected in (("pretrain", [1, 2, 4]), ("finetune", [4, 2, 1])):
        mine = weights.weights_from_scores([1 / 2, 1 / 3, 1 / 5], objective, preset)
        np.testing.assert_allclose(mine, np.array(expected) / 7, rtol=1e-14)


def test_weights_are_made_of_leverage_against_the_others() -> None:
    """S / (1 - S) is the leverage that a row has on the ridge regression of all other rows."""
    x = drawn_alike(6, 4) - drawn_alike(6, 4).mean(axis=0)
    ridge = 0.7
    scores = leverage_scores(x, ridge=ridge)
    for i, row in enumerate(x):
        others = np.delete(x, i, axis=0)
        alone = row @ np.linalg.solve(others.T @ others + 6 * ridge * np.eye(4), row)
        assert scores[i] / (1 - scores[i]) == pytest.approx(alone, rel=1e-10)


EMBEDDINGS = st.builds(
    lambda k, d, seed, offset: drawn_alike(k, d, seed) + offset,
    st.integers(3, 40),
    st.integers(2, 60),
    st.integers(0, 2**32 - 1),
    st.floats(-3, 3),
)
OBJECTIVES = st.sampled_from(weights.OBJECTIVES)


@given(EMBEDDINGS, OBJECTIVES, st.floats(-6, 6), st.integers(0, 2**32 - 1))
def test_scale_shift_and_rotation_move_no_weight(
    x: np.ndarray, objective: str, exponent: float, seed: int
) -> None:
    """Scaling, shifting or rotating all embeddings changes no weight by more than 1e-9."""
    generator = np.random.default_rng(seed)
    d = x.shape[1]
    shift = generator.normal(size=d)
    shift *= np.linalg.norm(x, axis=1).mean() / np.linalg.norm(shift)
    rotation = np.linalg.qr(generator.normal(size=(d, d)))[0]
    expected = weights.chameleon_weights(x, objective=objective)
    for moved in (x * 10.0**exponent, x + shift, x @ rotation):
        mine = weights.chameleon_weights(moved, objective=objective)
        np.testing.assert_allclose(mine, expected, rtol=0, atol=1e-9)


@given(EMBEDDINGS, OBJECTIVES, st.sampled_from(list(weights.PRESETS)), st.randoms())
def test_the_order_of_domains_changes_no_bit(
    x: np.ndarray, objective: str, preset: str, random: object
) -> None:
    """Permuting domains permutes their weights, to the last bit."""
    order = np.arange(len(x))
    random.shuffle(order)  # type: ignore[attr-defined]
    expected = weights.chameleon_weights(x, objective=objective, preset=preset)[order]
    mine = weights.chameleon_weights(x[order], objective=objective, preset=preset)
    assert mine.tobytes() == expected.tobytes()


def test_character_does_not_depend_on_the_number_of_domains() -> None:
    """For domains that are drawn alike, k·w has the same spread at k = 22 and at k = 1000.

    At k = 7 the spread is a little smaller: the noise in the mean of the six other domains makes
    the distance to it one sixth longer. Weights made of S itself would have half that spread.
    """
    spreads = {}
    for k, draws in ((7, 60), (22, 20), (1000, 1)):
        variances = [
            np.var(k * weights.chameleon_weights(drawn_alike(k, 1500, seed)), ddof=1)
            for seed in range(draws)
        ]
        spreads[k] = np.sqrt(np.mean(variances))
    assert spreads[22] == pytest.approx(spreads[1000], rel=0.1)
    assert spreads[7] == pytest.approx(spreads[1000], rel=0.25)


@given(st.lists(st.floats(1e-9, 0.999), min_size=2, max_size=30), OBJECTIVES, st.floats(0.0, 0.99))
def test_floor_on_effective_domains(
    scores: list[float], objective: str, min_effective: float
) -> None:
    """exp(entropy)/k is at least the floor, and equal to it where the weights were tempered."""
    preset = weights.choose_preset(exponent=2.0, min_effective=min_effective)
    mine, tempering = weights.tempered_weights(scores, objective, preset)
    share = weights.effective_domains(mine) / len(scores)
    assert mine.sum() == pytest.approx(1, abs=1e-12)
    assert share >= min_effective * (1 - 1e-12)
    if tempering < 1:
        assert share == pytest.approx(min_effective, abs=1e-9)


def test_floor_keeps_the_order() -> None:
    """Tempered weights still favour the domain that they favoured."""
    mine, tempering = weights.tempered_weights([1e-6, 0.9, 0.9, 0.9])
    assert weights.effective_domains(mine) == pytest.approx(0.5 * 4, abs=1e-9)
    assert 0 < tempering < 1
    assert np.argmax(mine) == 0


def test_a_domain_in_two_identical_halves_gets_more_than_as_one() -> None:
    """Two halves of a domain get more together than the whole: more than twice when pretraining.

    Each half has the other one near it, so both count as common. The other domains do not keep
    their proportions either. Joining the halves before the weights are computed avoids both.
    """
    times: dict[tuple[int, str], list[float]] = {}
    for k, draws in ((7, 10), (200, 2)):
        for seed in range(draws):
            x = drawn_alike(k, 1000, seed)
            for objective in weights.OBJECTIVES:
                whole = weights.chameleon_weights(x, objective=objective)[0]
                halves = weights.chameleon_weights(np.vstack([x, x[:1]]), objective=objective)
                assert halves[0] == pytest.approx(halves[k], rel=1e-9)
                times.setdefault((k, objective), []).append((halves[0] + halves[k]) / whole)
    for (k, objective), expected in (
        *(((7, "pretrain"), 2.2), ((7, "finetune"), 1.35)),
        *(((200, "pretrain"), 2.0), ((200, "finetune"), 1.95)),
    ):
        assert np.mean(times[k, objective]) == pytest.approx(expected, abs=0.07)


def test_nothing_overflows() -> None:
    """Scores for which a naive exponential is infinite give finite weights that sum to 1."""
    mine = weights.weights_from_scores(np.full(1000, 1e-4), "pretrain", "paper")
    np.testing.assert_allclose(mine, 1e-3)
    for scores in ([0.0, 0.5, 0.5], [1.0, 0.5, 0.5], [5e-324, 0.5, 0.5], [5e-324, 0.0]):
        for objective in weights.OBJECTIVES:
            for preset in weights.PRESETS:
                mine = weights.weights_from_scores(scores, objective, preset)
                assert (mine > 0).all()
                assert mine.sum() == pytest.approx(1)


def test_settings_make_the_preset_again() -> None:
    """The settings that a mixture file records of a preset are enough to choose it again."""
    for preset in (
        weights.choose_preset("paper", ridge=3.0, min_effective=0.2),
        weights.choose_preset(exponent=2.0, ridge=0.1),
    ):
        assert weights.choose_preset(**preset.settings()) == preset


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: weights.chameleon_weights(np.ones((3, 4))), "all the same"),
        (lambda: weights.weights_from_scores([0.1, -0.1]), "between 0 and 1"),
        (lambda: weights.weights_from_scores([0.1, 1.1]), "between 0 and 1"),
        (lambda: weights.weights_from_scores([0.1, np.nan]), "between 0 and 1"),
        (lambda: weights.weights_from_scores([0.0, 0.0]), "all scores are zero"),
        (lambda: weights.weights_from_scores([]), "shape"),
        (lambda: weights.weights_from_scores([0.1], "test"), "objective='test'"),
        (lambda: weights.choose_preset("papers"), "preset='papers'"),
        (lambda: weights.choose_preset("paper", exponent=1.0), "has no exponent"),
        (lambda: weights.choose_preset(ridge=-1.0), "ridge=-1.0"),
        (lambda: weights.choose_preset(min_effective=1.0), "must be at least 0 and less than 1"),
    ],
)
def test_wrong_input_is_named(call: object, says: str) -> None:
    """Input that has no weights is a ValueError that says what is wrong."""
    with pytest.raises(ValueError, match=says):
        call()  # type: ignore[operator]
