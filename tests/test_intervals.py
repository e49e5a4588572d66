"""method/intervals.py: 95 % intervals cover the true weights as often as they promise."""

import numpy as np
import pytest

from nemo_chameleon.method.embeddings import ShardedEmbedding
from nemo_chameleon.method.intervals import (
    WeightErrors,
    _draws,
    _resampled,
    resample,
    students_t,
)
from nemo_chameleon.method.weights import choose_preset
from nemo_chameleon.mixture import compute

NAMES = [f"domain {i}" for i in range(8)]


def sampled(
    truth: np.ndarray, noise: float, generator: np.random.Generator, b: int = 32
) -> dict[str, ShardedEmbedding]:
    """Return shard means around true embeddings (k, d).

    `noise` is that of a whole embedding, as a share of its distance to the centre.
    """
    k, d = truth.shape
    size = np.linalg.norm(truth - truth.mean(0), axis=1).mean() * noise * np.sqrt(b / d)
    means = truth[:, None] + generator.normal(size=(k, b, d)) * size
    tokens = np.full(b, 100)
    return dict(
        zip(NAMES, (ShardedEmbedding(m.astype(np.float32), tokens) for m in means), strict=False)
    )


def true_embeddings(seed: int = 0, d: int = 64) -> np.ndarray:
    """Return eight domains at different distances from their centre, the first of them near it."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(8, d)) * np.linspace(0.6, 1.4, 8)[:, None]
    x[0] *= 0.25
    return x


@pytest.mark.parametrize(
    ("preset", "noise"), [("calibrated", 0.05), ("calibrated", 0.2), ("paper", 0.05)]
)
def test_intervals_hold_the_true_weights(preset: str, noise: float) -> None:
    """In 60 draws of windows the intervals cover at least nine in ten of the true weights.

    At the larger noise the weights are biased: intervals from scatter alone would cover 84 %.
    """
    chosen, generator = choose_preset(preset), np.random.default_rng(1)
    x = true_embeddings() * np.sqrt(40 / 64)  # the paper's ridge does not scale with x
    truth = compute.weigh([x], "pretrain", chosen)
    covered = []
    for _ in range(60):
        errors = compute.errors_of([sampled(x, noise, generator)], NAMES, "pretrain", chosen)
        assert errors is not None
        low, high = errors.intervals().T
        covered.append((low <= truth) & (truth <= high))
    assert 0.9 <= np.mean(covered) <= 0.99


def test_intervals_narrow_with_the_root_of_the_samples() -> None:
    """A quarter of the noise variance halves the intervals."""
    x, preset = true_embeddings(), choose_preset()
    widths = []
    for noise in (0.1, 0.05):
        embeddings = sampled(x, noise, np.random.default_rng(0))
        errors = compute.errors_of([embeddings], NAMES, "pretrain", preset)
        assert errors is not None
        widths.append(errors.half_widths())
    assert np.median(widths[0] / widths[1]) == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize(
    ("proxies", "spread"), [(2, 0.15), (2, 0.5), (3, 0.15), (3, 0.5), (5, 0.15), (5, 0.5)]
)
def test_intervals_hold_what_another_proxy_gives(proxies: int, spread: float) -> None:
    """In 60 sets of a few proxies the intervals cover at least nine in ten of the weights that one
    more proxy gives, and windows alone cover few of them.

    At the larger spread the averaged weights differ from the mean of the proxies' own.
    """
    generator, preset = np.random.default_rng(0), choose_preset()
    x = true_embeddings()

    def proxy() -> np.ndarray:
        return x + generator.normal(size=x.shape) * spread

    covered, alone = [], []
    for _ in range(60):
        several = [sampled(proxy(), 1e-4, generator) for _ in range(proxies)]
        another = compute.weigh([proxy()], "pretrain", preset)
        errors = compute.errors_of(several, NAMES, "pretrain", preset)
        assert errors is not None
        assert errors.cover == "proxies"
        low, high = errors.intervals().T
        covered.append((low <= another) & (another <= high))
        assert errors.of_windows().cover == "windows"
        low, high = errors.of_windows().intervals().T
        alone.append((low <= another) & (another <= high))
    assert 0.9 <= np.mean(covered) <= 0.99
    assert np.mean(alone) < 0.1, "windows alone say nothing of proxies"


def test_two_proxies_are_enough_for_an_interval() -> None:
    """Two proxies that differ by a factor of 1.2 in every weight give intervals of a factor below
    1.5, because all domains together say how far proxies differ.
    """
    signs = np.tile([1.0, -1.0], 4) * np.log(1.2) / 2
    errors = WeightErrors(np.full(8, 1 / 8), np.zeros((200, 8)), np.stack([signs, -signs]), 32)
    low, high = errors.intervals().T
    # s = 0.129, times the root of 1 + 1/2, times Student's t at seven degrees of freedom.
    assert np.log(high / low) / 2 == pytest.approx(0.129 * 1.225 * 2.365, rel=0.01)


def test_students_t() -> None:
    """The quantiles are those of printed tables."""
    for degrees, expected in ((1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (31, 2.040)):
        assert students_t(degrees) == pytest.approx(expected, rel=0.001)


def test_another_domain_draws_nothing_else() -> None:
    """What is resampled for a domain follows from its name, not from its place in the order."""
    drawn = _draws("wiki", 32, 5)
    np.testing.assert_array_equal(drawn, _draws("wiki", 32, 5))
    assert (drawn.sum(axis=1) == 32).all()
    assert (drawn != _draws("book", 32, 5)).any()


def test_errors_have_the_variance_of_a_mean() -> None:
    """The error of a mean of four shards has a quarter of their variance.

    Resampling alone would give three sixteenths.
    """
    values = np.array([[[1.0], [2.0], [4.0], [9.0]]], dtype=np.float32)
    shards = {"wiki": ShardedEmbedding(values[0], np.full(4, 10))}
    errors = resample([shards], ["wiki"], lambda x: np.exp(x[0][:, 0]), 20_000)
    assert errors is not None
    assert np.mean(errors.windows**2) == pytest.approx(values.var(ddof=1) / 4, rel=0.03)


def test_tokens_count() -> None:
    """A shard of three times the tokens counts three times as much."""
    means = np.array([[[0.0], [4.0]]], dtype=np.float32)
    resampled = _resampled(means, np.array([[3, 1]]), np.array([[1, 1]]))
    assert resampled.tolist() == [[1.0]]


def test_one_shard_says_nothing() -> None:
    """One shard cannot be resampled, so there is no interval."""
    x = sampled(true_embeddings(), 0.1, np.random.default_rng(0), b=1)
    assert compute.errors_of([x], NAMES, "pretrain", choose_preset()) is None


def test_which_of_two_is_heavier() -> None:
    """Weights a hundredth apart are told apart at errors of a thousandth, but not of a tenth."""
    weights = np.array([0.50, 0.495])
    signs = np.array([[1, -1], [-1, 1]])

    def apart(windows: np.ndarray, proxies: np.ndarray = signs[:0]) -> bool:
        return WeightErrors(weights, windows, proxies, shards=32).tell_apart(0, 1)

    assert apart(0.001 * signs)
    assert not apart(0.1 * signs)
    assert not apart(0.001 * signs, 0.1 * signs)
    # Errors that both weights have in common do not blur their difference.
    common = np.array([[0.1, 0.1], [-0.1, -0.1]])
    assert apart(common)
    assert apart(0.001 * signs, common)


def test_the_order_that_is_told_is_that_of_another_proxy() -> None:
    """Where three proxies tell two weights apart, one more proxy gives the other order in at most
    one of twenty cases.
    """
    generator, truth = np.random.default_rng(0), np.linspace(-0.75, 0.75, 6)
    told, wrong = [], []
    for _ in range(200):
        proxies = truth + generator.normal(size=(3, 6)) * 0.2
        centre = proxies.mean(axis=0)
        another = truth + generator.normal(size=6) * 0.2
        weights = np.exp(centre) / np.exp(centre).sum()
        errors = WeightErrors(weights, np.zeros((9, 6)), proxies - centre, shards=32)
        for i in range(4):
            told.append(errors.tell_apart(i, i + 2))
            other_order = (centre[i] > centre[i + 2]) != (another[i] > another[i + 2])
            wrong.append(told[-1] and other_order)
    assert 0.1 < np.mean(told) < 0.9
    assert sum(wrong) <= 0.05 * sum(told)
