"""The examples in docstrings are run, and the headline functions have one each."""

import doctest
import inspect

import pytest

import nemo_chameleon as nc
from nemo_chameleon.method import leverage, weights
from nemo_chameleon.mixture import mixture

MODULES = [leverage, weights, mixture]
HEADLINES = [
    nc.affinity_matrix,
    nc.leverage_scores,
    nc.scores_from_affinity,
    nc.weights_from_scores,
    nc.chameleon_weights,
    nc.Mixture,
]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_examples(module: object) -> None:
    """Every example prints what its docstring shows."""
    results = doctest.testmod(module)  # type: ignore[arg-type]
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("headline", HEADLINES, ids=lambda headline: headline.__name__)
def test_headline_functions_have_an_example(headline: object) -> None:
    """Each has an example in a module that is tested, and names its source."""
    assert inspect.getmodule(headline) in MODULES
    docstring = inspect.getdoc(headline) or ""
    assert doctest.DocTestParser().get_examples(docstring)
    assert "arXiv 2505.24844" in docstring
    assert "Example:" in docstring
