"""mixture/formats.py: mixtures are written in other tools' formats and read back."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.datasets.utils import get_blend_from_list

from nemo_chameleon import Mixture, cli
from nemo_chameleon.mixture.formats import FORMATS, export_mixture, import_mixture
from nemo_chameleon.utils.errors import UserError

MIXTURE = Mixture(
    {"wiki": 0.25, "code": 0.75},
    domains={
        "wiki": {"path": "/data/wiki", "tokens": 1000, "documents": 10},
        "code": {"path": "/data/code", "tokens": 6000, "documents": 20},
    },
    uncertainty={"wiki": [0.2, 0.3]},
)
NAME = st.text(
    st.characters(exclude_categories=("C", "Z"), exclude_characters="/."), min_size=1, max_size=9
)
AMOUNT = st.floats(1e-6, 1e6)
MIXTURES = st.builds(
    lambda weights, sizes: Mixture(
        Mixture.static(weights).weights,
        domains={
            name: {"path": f"/data/{name}", "tokens": tokens, "documents": documents}
            for name, (tokens, documents) in zip(weights, sizes, strict=False)
        },
    ),
    st.dictionaries(NAME, AMOUNT, min_size=2, max_size=12),
    st.lists(st.tuples(st.integers(1, 10**14), st.integers(1, 10**9)), min_size=12, max_size=12),
)


@pytest.mark.parametrize("form", FORMATS)
@given(MIXTURES)
def test_round_trip(form: str, mixture: Mixture) -> None:
    """A mixture that is exported and imported is the same, to the last bit where possible."""
    back = import_mixture(export_mixture(mixture, form), form)
    assert back.weights.keys() == mixture.weights.keys()
    if form == "hf":
        assert back.weights == pytest.approx(mixture.weights, rel=1e-12)
    else:
        assert back.weights == mixture.weights
        assert {n: f["path"] for n, f in back.domains.items()} == {
            name: facts["path"] for name, facts in mixture.domains.items()
        }
    assert back.name == "static"


def test_what_megatron_reads() -> None:
    """Megatron's own parser finds prefixes and weights in the text, the JSON and NeMo's list."""
    blend = (["/data/wiki", "/data/code"], [0.25, 0.75])
    text = export_mixture(MIXTURE, "megatron")
    assert text == "0.25 /data/wiki\n0.75 /data/code\n"
    assert get_blend_from_list(text.split()) == blend
    splits = json.loads(export_mixture(MIXTURE, "megatron-per-split"))
    assert get_blend_from_list(splits["train"]) == blend
    assert [get_blend_from_list(splits[part]) for part in ("valid", "test")] == [None, None]
    paths = yaml.safe_load(export_mixture(MIXTURE, "nemo"))["paths"]
    assert get_blend_from_list(paths) == blend
    bridge = yaml.safe_load(export_mixture(MIXTURE, "bridge"))["dataset"]["blend"]
    assert tuple(bridge) == blend


def test_documents_of_other_lengths_are_drawn_at_other_rates() -> None:
    """Documents three times as long are drawn a third as often for the same share of tokens."""
    body = json.loads(export_mixture(MIXTURE, "hf"))
    assert body["names"] == ["wiki", "code"]
    assert body["tokens_per_document"] == [100, 300]
    # The rates are 0.25 / 100 and 0.75 / 300, which are equal.
    assert body["probabilities"] == pytest.approx([0.5, 0.5])


def test_csv() -> None:
    """The table has one row per domain, with what is known of the domain."""
    assert export_mixture(MIXTURE, "csv").splitlines() == [
        "domain,weight,path,tokens,documents,score,low,high",
        "wiki,0.25,/data/wiki,1000,10,,0.2,0.3",
        "code,0.75,/data/code,6000,20,,,",
    ]


def test_percentages_are_taken_for_shares() -> None:
    """Weights 30 and 70, which Megatron accepts, become 0.3 and 0.7.

    The names are the last parts of the paths.
    """
    mixture = import_mixture("30 /data/a/web 70 /data/b/web", "megatron")
    assert mixture.weights == {"a/web": 0.3, "b/web": 0.7}
    assert mixture.domains["a/web"] == {"path": "/data/a/web"}


@pytest.mark.parametrize(
    ("form", "text", "says"),
    [
        ("megatron", "", "must come in pairs"),
        ("megatron", "0.3 /a 0.7", "must come in pairs"),
        ("megatron", "/a /b", "does not have the format megatron"),
        ("megatron", "0.3 /a 0.7 /a", "is given twice"),
        ("megatron", "-1 /a 2 /b", "'a' is -1.0"),
        ("megatron-per-split", '{"valid": []}', "does not have the format"),
        ("megatron-per-split", "[", "does not have the format"),
        ("nemo", "paths: 3", "must come in pairs"),
        ("nemo", "a: [", "does not have the format nemo"),
        ("bridge", "dataset: {blend: [[/a, /b], [1]]}", "does not have the format bridge"),
        ("megatron", "0.3 /data/a 0.7 /data/./a", "is given twice"),
        ("megatron", "1e308 /a 1e308 /b", "overflow"),
        ("nemo", "paths: ['0.3', 5, '0.7', /b]", "must be a list of paths"),
        ("nemo", "paths: " + "[" * 5000, "does not have the format nemo"),
        ("bridge", "dataset: {blend: [ab, [1, 2]]}", "must be a list of paths"),
        ("hf", '{"names": ["a"], "probabilities": [1]}', "does not have the format hf"),
        (
            "hf",
            '{"names": ["a", "a"], "probabilities": [1, 1], "tokens_per_document": [1, 1]}',
            "duplicate domain 'a'",
        ),
        (
            "csv",
            "domain,weight\n,1\nb,1\n",
            "a domain must have a name, not ''",
        ),
        ("csv", "domain,weight\na,1\na,2\n", "duplicate domain 'a'"),
        ("csv", "name,share\na,1\n", "does not have the format csv"),
    ],
)
def test_text_of_another_form(form: str, text: str, says: str) -> None:
    """Text that cannot be read is an error that names the file."""
    with pytest.raises(UserError, match=f"weights.txt.*{says}"):
        import_mixture(text, form, "weights.txt")


@pytest.mark.parametrize(
    ("form", "domains", "says"),
    [
        ("megatron", {}, "the mixture has no 'path' for domain 'a'"),
        ("nemo", {"a": {"path": "/my data/a"}, "b": {"path": "/b"}}, "blanks"),
        (
            "hf",
            {"a": {"tokens": 5}, "b": {"tokens": 5}},
            "the mixture has no 'documents' for domain 'a'",
        ),
    ],
)
def test_facts_that_are_missing(form: str, domains: dict[str, dict[str, Any]], says: str) -> None:
    """A format that needs paths or lengths is refused, and a domain without them is named."""
    with pytest.raises(UserError, match=says):
        export_mixture(Mixture({"a": 0.5, "b": 0.5}, domains=domains), form)


def test_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`export` prints or writes the format, and says on stderr what the numbers mean.

    `import` writes a mixture.
    """

    def run(*arguments: object) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["nemo-chameleon", "mixture", *map(str, arguments)])
        cli.main()
        said = capsys.readouterr()
        return said.out, said.err

    MIXTURE.save(tmp_path / "m.json")
    out, err = run("export", tmp_path / "m.json", "--format", "megatron")
    assert out == "0.25 /data/wiki\n0.75 /data/code\n"
    assert "share of training samples" in err
    run("export", tmp_path / "m.json", "--format", "csv", "--output", tmp_path / "m.csv")
    with pytest.raises(SystemExit):
        run("export", tmp_path / "m.json", "--format", "csv", "--output", tmp_path)
    assert "cannot write" in capsys.readouterr().err
    # A spreadsheet saves it with this encoding.
    (tmp_path / "m.csv").write_text((tmp_path / "m.csv").read_text(), encoding="utf-8-sig")
    out, _ = run("import", tmp_path / "m.csv", "--format", "csv", "--output", tmp_path / "n.json")
    assert Mixture.load(tmp_path / "n.json").weights == MIXTURE.weights
    assert "0.7500" in out
