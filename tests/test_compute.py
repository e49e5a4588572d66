"""mixture/compute.py: a mixture is computed from embeddings by name; errors name the domain."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nemo_chameleon import Mixture
from nemo_chameleon.method import diagnostics
from nemo_chameleon.method.embeddings import HeaviestTokens, ShardedEmbedding
from nemo_chameleon.method.leverage import affinity_matrix
from nemo_chameleon.method.weights import chameleon_weights, choose_preset
from nemo_chameleon.mixture import compute
from nemo_chameleon.mixture.tables import show_mixture
from nemo_chameleon.utils.errors import UserError
from project import drawn_alike

NAMES = ["wiki", "book", "code", "web", "law"]


def embedded(x: np.ndarray, shards: int = 4, noise: float = 0.0) -> dict[str, ShardedEmbedding]:
    """Return the rows of x as embeddings in shards, by name."""
    scatter = np.random.default_rng(0).normal(size=(len(x), shards, x.shape[1])) * noise
    return {
        name: ShardedEmbedding((row + part).astype(np.float32), np.full(shards, 10))
        for name, row, part in zip(NAMES, x, scatter, strict=False)
    }


def mixture(embeddings: Any, names: list[str] = NAMES, **changes: Any) -> Mixture:
    """Return the mixture of the domains `names`."""
    settings: dict[str, Any] = {"objective": "pretrain", "preset": choose_preset()} | changes
    return compute.mixture_from_embeddings(
        embeddings, {name: {"samples": 100} for name in names}, **settings
    )


def test_weights_by_name() -> None:
    """Each domain has the weight of its own embedding, whatever the order of the file."""
    x = drawn_alike(5).astype(np.float32)
    shuffled = dict(reversed(embedded(x).items()))
    made = mixture([shuffled])
    expected = dict(zip(NAMES, chameleon_weights(x), strict=True))
    assert made.weights == pytest.approx(expected, abs=1e-9)
    assert list(made.weights) == NAMES
    assert made.domains["wiki"].keys() == {"samples", "embedding", "score"}
    assert set(made.uncertainty) == set(NAMES)


def test_heavy_tokens_are_said_with_the_layer() -> None:
    """A share above a tenth gives a caveat with layer and token, and the file has every share.

    Of several proxies the largest share counts.
    """
    x = drawn_alike(5)
    embeddings = embedded(x)
    light = {
        name: replace(e, heaviest=HeaviestTokens(0.01, 1.0, 3, 9)) for name, e in embeddings.items()
    }
    heavy = {**light, "code": replace(light["code"], heaviest=HeaviestTokens(0.5, 9.0, 7, 0))}
    assert not any("of layer" in said for said in mixture([light]).method["caveats"])
    for proxies in ([heavy], [heavy, light]):
        made = mixture(proxies, method={"layer": 6})
        (said,) = (said for said in made.method["caveats"] if "of layer" in said)
        assert "layer 6, 1 % of the tokens give 50% of the squared norm of 'code''s mean" in said
        assert "the heaviest one is token 7 at position 0" in said
        assert made.domains["code"]["heaviest_share"] == 0.5
        assert made.domains["wiki"]["heaviest_share"] == 0.01


def test_what_the_samples_do_not_settle_is_said() -> None:
    """Noise that blurs the weights gives a warning that says how many samples would be enough.

    Without such noise there is no warning.
    """
    x = drawn_alike(5)
    (more, which) = mixture([embedded(x, 32, noise=1.0)]).method["caveats"]
    assert more.startswith("the weight of '")
    assert "samples per domain would bring the error from sampling down to 0.005" in more
    assert "do not show which domain has the larger weight: '" in which
    assert mixture([embedded(x, 32, noise=1e-3)]).method["caveats"] == []


def test_how_many_samples_would_do() -> None:
    """Intervals four times too wide need sixteen times the samples.

    For a domain that has no more tokens no number is named.
    """
    embeddings = [embedded(drawn_alike(5), 32, noise=1.0)]
    errors = compute.errors_of(embeddings, NAMES, "pretrain", choose_preset())
    assert errors is not None
    quarter = float(errors.half_widths().max()) / 4
    more, _ = mixture(embeddings, tolerance=quarter).method["caveats"]
    assert "about 2,000 samples per domain would" in more, "16 times 100, rounded up"
    facts = {name: {"samples": 100, "tokens": 320} for name in NAMES}
    used_up = compute.mixture_from_embeddings(
        embeddings, facts, objective="pretrain", preset=choose_preset(), tolerance=quarter
    )
    assert re.fullmatch(
        r"the weight of '\w+' is known only to within 0\.\d{4}", used_up.method["caveats"][0]
    )


def test_proxies_that_disagree_ask_for_more_proxies() -> None:
    """When proxies disagree more than windows do, the warnings name the proxies and do not ask for
    more samples.
    """
    proxies = [embedded(drawn_alike(5, seed=seed), 32, noise=0.1) for seed in (1, 2, 3)]
    made = mixture(proxies)
    assert made.method["intervals"] == "proxies"
    known, which = made.method["caveats"]
    advice = "more samples would not help, but the mean of more proxies varies less"
    assert known.endswith(f" for another proxy; {advice}")
    assert which.startswith("the proxies do not show which domain has the larger weight: '")


def test_the_column_says_what_the_intervals_cover() -> None:
    """Intervals of one proxy are over windows, those of several are over proxies, and a file of an
    earlier version does not say what its intervals are over.
    """
    one, two = (embedded(drawn_alike(5, seed=seed), 32, noise=0.1) for seed in (1, 2))
    made = mixture([one])

    def title(shown: Mixture) -> list[str]:
        """Return the column's title, which stands in two lines of the header."""
        above, below = show_mixture(shown).splitlines()[:2]
        return [above[above.index("95 %") :].split("  ")[0], below.split()[2]]

    assert made.method["intervals"] == "windows"
    assert title(made) == ["95 % over", "windows"]
    assert title(mixture([one, two])) == ["95 % over", "proxies"]
    del made.method["intervals"]
    assert title(made) == ["95 %", "interval"]
    assert "intervals" not in mixture([embedded(drawn_alike(5), 1)]).method


def test_a_proxy_that_is_trained_too_little_is_named() -> None:
    """Weights that moved by more than the threshold over the last quarter of the training give a
    warning with a number of iterations, in place of advice to draw more samples.

    Of several proxies the mean counts. A proxy without the two facts gives no warning.
    """
    embeddings = embedded(drawn_alike(5), 32, noise=1.0)
    settings = {**diagnostics.SETTINGS, "train_iters": "proxy.train.train_iters"}

    def said(*proxies: dict[str, Any]) -> str:
        proxy = {"averaged": list(proxies)} if len(proxies) > 1 else proxies[0]
        several = [embeddings, *[embedded(drawn_alike(5), 32, noise=2.0)] * (len(proxies) - 1)]
        return "\n".join(mixture(several, proxy=proxy, settings=settings).method["caveats"])

    much, little = 2 * diagnostics.DRIFT, diagnostics.DRIFT / 2
    needed = diagnostics._rounded_up(400 * 2 ** (1 / diagnostics.DRIFT_EXPONENT))
    warned = said({"drift": much, "iterations": 400})
    assert f"{much:.1%} of the samples moved to another domain" in warned
    assert f"proxy.train.train_iters={needed} would" in warned
    assert "samples per domain would bring" not in warned
    assert "is known only to within" in warned
    enough = said({"drift": little, "iterations": 400})
    assert "trained too little" not in enough
    assert "samples per domain would bring" in enough
    assert "trained too little" not in said({"drift": much})
    assert "trained too little" not in said({})
    two = {"drift": much, "iterations": 400}, {"drift": diagnostics.DRIFT, "iterations": 400}
    assert "trained too little" in said(*two)
    assert "trained too little" not in said(
        {"drift": little, "iterations": 400}, {"drift": 0.0, "iterations": 400}
    )


def test_averaged_proxies_have_the_mean_of_their_affinities() -> None:
    """Averaging takes the mean of the proxies' affinities, whatever the axes and scales of their
    hidden states.
    """
    x, y = drawn_alike(5, 16, seed=1), drawn_alike(5, 24, seed=2)
    together = affinity_matrix(compute.combined([x, 100 * y]))
    own = [affinity_matrix(part) for part in (x, y)]
    mean = sum(part / np.trace(part) for part in own)
    np.testing.assert_allclose(together / np.trace(together), mean / 2, atol=1e-12)


def test_a_rotated_proxy_adds_nothing() -> None:
    """A proxy with other axes and scale but the same geometry leaves every weight as it is."""
    x = drawn_alike(5, 16).astype(np.float32)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(16, 16)))[0]
    one, two = mixture([embedded(x)]), mixture([embedded(x), embedded(7 * x @ rotation)])
    assert two.weights == pytest.approx(one.weights, abs=1e-6)


def not_finite(value: float) -> dict[str, ShardedEmbedding]:
    """Return embeddings in which one number of `code` is not finite."""
    x = drawn_alike(5)
    x[2, 3] = value
    return embedded(x)


WIDER = {**embedded(drawn_alike(5)), "web": embedded(drawn_alike(5, 32))["web"]}
MORE_SHARDS = {**embedded(drawn_alike(5)), "web": embedded(drawn_alike(5), 8)["web"]}


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: mixture([not_finite(np.nan)]), "domain 'code' is not finite"),
        (lambda: mixture([not_finite(-np.inf)]), "domain 'code' is not finite"),
        (lambda: mixture([WIDER]), "domain 'web' has 32 numbers and that of 'wiki' has 64"),
        (lambda: mixture([MORE_SHARDS]), "of 4 and of 8 shards"),
        (lambda: mixture([embedded(drawn_alike(4))]), "domain 'law' has no embedding"),
        (lambda: mixture([embedded(drawn_alike(5))], []), "there are no domains"),
        (lambda: mixture([]), "there are no domains"),
        (lambda: mixture([embedded(drawn_alike(5))], ["wiki"]), "'wiki' is the only domain"),
        (lambda: mixture([embedded(np.ones((5, 8)))]), "all the same"),
        (lambda: mixture([embedded(np.ones((5, 8)))] * 2), "one of the proxies"),
    ],
)
def test_wrong_embeddings_are_named(call: Any, says: str) -> None:
    """Embeddings that give no weights raise a UserError that names the domain."""
    with pytest.raises(UserError, match=says):
        call()
