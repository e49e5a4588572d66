"""mixture/mixture.py: weights by name, and a file that is read back as it was written."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_chameleon import Mixture, UserError


def test_constructors() -> None:
    """Uniform, proportional and static weights are what a person would write down."""
    assert Mixture.uniform(["a", "b", "c", "d"]).weights == dict.fromkeys("abcd", 0.25)
    assert Mixture.proportional({"a": 300, "b": 100}).weights == {"a": 0.75, "b": 0.25}
    assert Mixture.static({"a": 1, "b": 3}).weights == {"a": 0.25, "b": 0.75}


def test_blend_goes_by_name_not_by_position() -> None:
    """The blend has the order of the paths, and each prefix has the weight of its own domain."""
    mixture = Mixture({"a": 0.75, "b": 0.25})
    assert mixture.blend({"b": "/data/b", "a": "/data/a"}) == (
        ["/data/b", "/data/a"],
        [0.25, 0.75],
    )
    with pytest.raises(UserError, match="no weight for c and it has weights for b"):
        mixture.blend({"a": "/data/a", "c": "/data/c"})


def test_file_round_trip_is_exact(tmp_path: Path) -> None:
    """Weights that need 17 decimal digits are read back to the same bits."""
    third = 1 / 3
    mixture = Mixture(
        {"ä/b.c": third, "b": 0.1, "c": 1 - third - 0.1},
        objective="pretrain",
        domains={"b": {"tokens": 7, "score": math.pi}},
        method={"name": "chameleon", "exponent": None},
    )
    mixture.save(tmp_path / "deep" / "m.json")
    assert Mixture.load(tmp_path / "deep" / "m.json") == mixture
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["m.json"]


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
        st.floats(1e-9, 1e9),
        min_size=1,
    ),
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])), st.floats(-1, 1) | st.text()
    ),
)
def test_any_mixture_reads_back(amounts: dict[str, float], method: dict[str, Any]) -> None:
    """A mixture with any names, weights and recorded method is read back as it was."""
    for checked in ("caveats", "layers"):
        method.pop(checked, None)
    weights = Mixture.static(amounts).weights
    facts = {name: {"tokens": 5, "score": 0.25} for name in weights}
    mixture = Mixture(weights, domains=facts, method=method)
    assert Mixture.from_json(mixture.to_json()) == mixture


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "Expecting"),
        ("[1]", "no 'format'"),
        ('{"weights": {"a": 1.0}}', "no 'format'"),
        ('{"format": 9, "weights": {"a": 1.0}}', "format is not 1"),
        ('{"format": 1}', "no 'weights'"),
        ('{"format": 1, "weights": {"a": 0.5}}', "sum to 0.5"),
        ('{"format": 1, "weights": {"a": NaN}}', "NaN is not a finite number"),
        ('{"format": 1, "weights": {"a": 1.0}, "domains": {"a": {"tokens": -1}}}', "'tokens' of"),
        ('{"format": 1, "weights": {"a": 1.0}, "domains": {"a": {"path": 5}}}', "'path' of"),
        ('{"format": 1, "weights": {"a": 1.0}, "uncertainty": {"a": [1]}}', "the uncertainty of"),
        ('{"format": 1, "weights": {"a": 1.0}, "uncertainty": {"b": [0, 1]}}', "'b' has an entry"),
        ('{"format": 1, "weights": {"a": 1.0}, "proxy": {"averaged": [5]}}', "'averaged'"),
        ('{"format": 1, "weights": {"a": 1.0}, "proxy": {"drift": "x"}}', "'drift' and"),
        (
            '{"format": 1, "weights": {"a": 1.0}, "proxy": {"averaged": [{"iterations": []}]}}',
            "'iterations' of a proxy must be numbers",
        ),
        ('{"format": 1, "weights": {"a": 1.0}, "method": {"intervals": 5}}', "'intervals' must"),
        ('{"format": 1, "weights": {"a": 1.0}, "method": {"layers": {"1": {}}}}', "'layers'"),
        ("[" * 100_000, "recursion"),
        ('{"format": 1, "weights": {"a": -0.5, "b": 1.5}}', "'a' is -0.5"),
        ('{"format": 1, "weights": {"a": 0, "b": 1}}', "'a' is 0"),
        ('{"format": 1, "weights": {"a": "1"}}', "'a' is '1'"),
        ('{"format": 1, "weights": {"a": 0.5, "a": 0.5}}', "duplicate key 'a'"),
        ('{"format": 1, "weights": {"a": 1.0}, "domains": {"b": {}}}', "'b' has an entry"),
        ('{"format": 1, "weights": {"a": 1.0}, "wieghts": {}}', "unknown entry 'wieghts'"),
        ('{"format": 1, "weights": {"a": 1.0}, "domains": []}', "'domains' must be an object"),
        ('{"format": 1, "weights": {"a": 1.0}, "domains": {"a": 3}}', "'a' must be an object"),
        ('{"format": 1, "weights": {"a": 1.0}, "domains": {"a": {"score": "x"}}}', "'score' of"),
        ('{"format": 1, "weights": {"a": 1.0}, "method": {"caveats": 1}}', "'caveats'"),
        ('{"format": 1, "weights": {"a": 1.0}, "method": "x"}', "'method' must be an object"),
        ('{"format": 1, "weights": {"a": 1' + "0" * 400 + "}}", "m.json"),
    ],
)
def test_reading_is_strict(tmp_path: Path, text: str, says: str) -> None:
    """A file that is not a mixture is refused, and the error names the file and the fault."""
    path = tmp_path / "m.json"
    path.write_text(text)
    with pytest.raises(UserError, match=says) as error:
        Mixture.load(path)
    assert str(path) in str(error.value)


TOKENS = {"a": 1000, "b": 1000, "c": 10_000}


def test_cap_on_epochs() -> None:
    """At 4 epochs `a` fills 0.4 of 10,000 tokens, and the freed 0.1 goes to b and c as 3 to 2."""
    mixture = Mixture({"a": 0.5, "b": 0.3, "c": 0.2}, method={"name": "chameleon"})
    capped = mixture.within_bounds(TOKENS, 10_000, max_epochs=4)
    assert capped.weights == pytest.approx({"a": 0.4, "b": 0.36, "c": 0.24})
    assert capped.method == {"name": "chameleon", "max_epochs": 4, "bound": ["a"]}
    assert mixture.within_bounds(TOKENS, 10_000, max_epochs=6) is mixture
    assert mixture.within_bounds(TOKENS, 10_000) is mixture


def test_caps_that_miss_1_by_a_rounding_are_enough() -> None:
    """Caps that sum to less than 1 by a rounding error alone are enough."""
    names = [str(i) for i in range(49)]
    assert math.fsum([1 * 1 / 49] * 49) < 1
    capped = Mixture.uniform(names).within_bounds(dict.fromkeys(names, 1), 49, max_epochs=1)
    assert capped.weights == pytest.approx(dict.fromkeys(names, 1 / 49), rel=1e-12)


def test_pins_and_floors() -> None:
    """A fixed share, a floor and a cap are kept together."""
    mixture = Mixture({"a": 0.5, "b": 0.3, "c": 0.2})
    bounded = mixture.within_bounds(TOKENS, 10_000, max_epochs=3, pin={"b": 0.1}, floor={"c": 0.25})
    assert bounded.weights == pytest.approx({"a": 0.3, "b": 0.1, "c": 0.6})
    assert bounded.method["bound"] == ["a", "b"]


def test_bounds_that_leave_no_choice() -> None:
    """Pins of every domain, and caps that are just enough, become the weights."""
    mixture = Mixture({"a": 0.2, "b": 0.3, "c": 0.5})
    pins = {"a": 0.7, "b": 0.2, "c": 0.1}
    assert mixture.within_bounds(TOKENS, 10_000, pin=pins).weights == pytest.approx(pins)
    tokens = {"a": 1237, "b": 2411, "c": 999}
    budget = 2 * sum(tokens.values())
    capped = mixture.within_bounds(tokens, budget, max_epochs=2)
    for name, weight in capped.weights.items():
        assert weight * budget == pytest.approx(2 * tokens[name])


@pytest.mark.parametrize(
    ("bounds", "says"),
    [
        (
            {"max_epochs": 0.5},
            "allows 6,000 tokens in all, but the run draws 10,000: 4,000 are",
        ),
        ({"pin": {"z": 0.1}}, "pin.z: 'z' is not one of the domains"),
        ({"floor": {"a": 1.5}}, "floor.a=1.5 must be a share"),
        ({"pin": {"a": 0.6, "b": 0.6}}, "cannot be kept"),
        ({"pin": {"a": 0.5, "b": 0.5}}, "leave no weight for domain 'c'"),
        ({"pin": {"a": 0.1}, "floor": {"a": 0.3}}, "pin.a=0.1 is below floor.a=0.3"),
        (
            {"pin": {"a": 0.4}, "max_epochs": 3},
            "pin.a=0.4 takes 4.00 epochs of 'a', more than max_epochs=3",
        ),
    ],
)
def test_bounds_that_cannot_be_kept(bounds: dict[str, Any], says: str) -> None:
    """When there is too little data, the missing tokens are named; other bounds name the domain."""
    with pytest.raises(UserError) as error:
        Mixture({"a": 0.5, "b": 0.3, "c": 0.2}).within_bounds(TOKENS, 10_000, **bounds)
    assert says in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    """A file that is not there is a UserError that names it."""
    with pytest.raises(UserError, match=r"nothing\.json"):
        Mixture.load(tmp_path / "nothing.json")


def test_file_starts_with_what_a_person_looks_for(tmp_path: Path) -> None:
    """Format and weights come first in the file."""
    Mixture({"a": 1.0}, method={"name": "static"}).save(tmp_path / "m.json")
    assert list(json.loads((tmp_path / "m.json").read_text()))[:2] == ["format", "weights"]


def test_import_needs_neither_torch_nor_megatron() -> None:
    """The method and the mixture file can be used where torch and megatron are not installed."""
    code = (
        "import sys, nemo_chameleon, nemo_chameleon.method.leverage, nemo_chameleon.mixture; "
        "sys.exit(any(name.split('.')[0] in ('torch', 'megatron') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
