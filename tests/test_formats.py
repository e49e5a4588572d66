"""mixture/formats.py: mixtures are written in other tools' formats and read back."""

import csv
import io
import json
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.datasets.utils import get_blend_from_list

from nemo_chameleon import Mixture, cli
from nemo_chameleon.mixture.formats import FORMATS, export_mixture, import_mixture
from nemo_chameleon.mixture.formats.blend import entries_of
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
).filter(lambda name: name not in ("run", "run_id", "name", "index"))
AMOUNT = st.floats(1e-6, 1e6)


def _facts(name: str, tokens: int, documents: int, several: bool) -> dict[str, Any]:
    datasets = [f"/data/{name}/{part}" for part in "ab"]
    parts = {"path": datasets, "part_tokens": [tokens / 3, 2 * tokens]}
    path = parts if several else {"path": f"/data/{name}"}
    return {"tokens": tokens, "documents": documents, **path}


MIXTURES = st.builds(
    lambda weights, sizes: Mixture(
        Mixture.static(weights).weights,
        domains={name: _facts(name, *facts) for name, facts in zip(weights, sizes, strict=False)},
    ),
    st.dictionaries(NAME, AMOUNT, min_size=2, max_size=12),
    st.lists(
        st.tuples(st.integers(1, 10**14), st.integers(1, 10**9), st.booleans()),
        min_size=12,
        max_size=12,
    ),
)


@pytest.mark.parametrize("form", FORMATS)
@given(MIXTURES)
def test_round_trip(form: str, mixture: Mixture) -> None:
    """A mixture that is exported and imported is the same, to the last bit where possible."""
    back = import_mixture(export_mixture(mixture, form), form)
    if form in ("hf", "ratios", "json"):
        assert back.weights == pytest.approx(mixture.weights, rel=1e-12)
    else:
        # These formats know datasets: a domain of several may come back as a domain for each.
        assert dict(entries_of(back)) == pytest.approx(dict(entries_of(mixture)), rel=1e-12)
    if form == "csv":
        assert back.weights == mixture.weights
        assert back.domains == {
            name: {key: facts[key] for key in ("path", "part_tokens") if key in facts}
            for name, facts in mixture.domains.items()
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
        "domain,weight,path,part_tokens,tokens,documents,score,low,high",
        "wiki,0.25,/data/wiki,,1000,10,,0.2,0.3",
        "code,0.75,/data/code,,6000,20,,,",
    ]


@pytest.mark.parametrize("path", ['["a"]', '"a"', "[a]/*", "[", ["/d/a"], ["/d/a, b", "=c"]])
def test_paths_that_look_like_lists(path: str | list[str]) -> None:
    """A path that is written like a list stays text, and a list stays a list."""
    mixture = Mixture({"a": 0.5, "b": 0.5}, domains={"a": {"path": path}, "b": {"path": "/b"}})
    assert import_mixture(export_mixture(mixture, "csv"), "csv").domains == mixture.domains


def test_percentages_are_taken_for_shares() -> None:
    """Weights 30 and 70, which Megatron accepts, become 0.3 and 0.7.

    The names are the last parts of the paths.
    """
    mixture = import_mixture("30 /data/a/web 70 /data/b/web", "megatron")
    assert mixture.weights == {"a/web": 0.3, "b/web": 0.7}
    assert mixture.domains["a/web"] == {"path": "/data/a/web"}


TWO = {"wiki": 0.25, "code": 0.75}


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("megatron", "0.25 /d/wiki 0.5 /d/code\n0.25 /d/./code"),
        ("megatron-per-split", '{"train": "1 /d/wiki 3 /d/code", "valid": null, "test": null}'),
        ("megatron-per-split", '{"train": [1, "/d/wiki", "3", "/d/code"], "valid": ["/d/v"]}'),
        ("nemo", "paths: [1, /d/wiki, 3, /d/code]"),
        ("nemo", "paths: {train: ['1', /d/wiki, '3', /d/code], validation: [/d/v], test: null}"),
        ("nemo", "paths: [[0.25, /d/wiki], [0.75, /d/code]]"),
        ("nemo", "paths: [[/d/wiki, 0.25], [/d/code, 0.75]]"),
        ("nemo", "[{path: /d/wiki, weight: 1}, {path: /d/code, weight: 3}]"),
        ("nemo", "model: {data: {data_prefix: [.25, /d/wiki, .75, /d/code], seed: 1}}"),
        ("nemo", "model: {data: {data_prefix: {train: [1, /d/wiki, 3, /d/code], test: [/d/t]}}}"),
        ("nemo", "base: &base {paths: null}\ndata: {<<: *base, paths: [1, /d/wiki, 3, /d/code]}"),
        ("nemo", "data: !fdl.Config\n  paths: !!python/tuple [1, /d/wiki, 3, /d/code]"),
        (
            "nemo",
            "model: {data: {train_ds: {file_names: [/d/wiki, /d/code],"
            " concat_sampling_probabilities: [1, 3]}}}",
        ),
        ("bridge", "dataset: {blend: [[/d/wiki, /d/code], [1, 3]], blend_per_split: null}"),
        (
            "bridge",
            "dataset:\n  blend:\n"
            "  blend_per_split: [[[/d/wiki, /d/code], [1, 3]], [[/d/v], null], null]",
        ),
        ("bridge", "blend: [1, /d/wiki, 3, /d/code]"),
        ("hf", '{"names": ["wiki", "code"], "probabilities": null, "tokens_per_document": [1, 3]}'),
        ("hf", "probabilities: {wiki: 0.5, code: 0.5}\ntokens_per_document: {code: 3, wiki: 1}"),
        ("csv", "weight,domain\r\n1,wiki\r\n\r\n3,code\r\n"),
        ("csv", "domain;weight\r\nwiki;0.25\r\ncode;0.75\r\n"),
        ("csv", "domain\tweight\nwiki\t0.25\ncode\t0.75\n"),
        ("csv", "sep=;\r\nDomain;Weight\r\nwiki;0.25\r\ncode;0.75\r\n"),
        ("csv", "\ufeffsep=|\n Domain |WEIGHT\nwiki|0.25\ncode|0.75\n"),
        ("megatron", "\ufeff0.25 /d/wiki 0.75 /d/code"),
        ("ratios", "run_id;wiki;code\n7;0.25;0.75\n"),
        ("ratios", "run_id,name,wiki,code,law\n7,best,0.25,0.75,0\n"),
        ("ratios", ",wiki,code\n0,0.25,0.75\n"),
        ("ratios", "Unnamed: 0,wiki,code\n3,0.25,0.75\n"),
        ("nemo", "datasets:\n- paths: [1, /d/wiki, 3, /d/code]"),
        ("megatron", "0.25 /d/wiki 0.5 /d/code.bin 0.25 //d/code.idx"),
        ("json", '{"names": ["wiki", "code"], "probabilities": [0.25, 0.75]}'),
        ("json", '{"wiki": 1, "code": 3, "law": 0}'),
        ("json", '[{"domain": "wiki", "weight": 0.25}, {"domain": "code", "weight": 0.75}]'),
    ],
)
def test_shapes(form: str, text: str) -> None:
    """Every shape in which a tool writes its weights is read."""
    assert import_mixture(text, form).weights == pytest.approx(TWO)


def test_what_is_left_out_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Other splits, domains of weight 0 and prefixes that stand twice are named."""
    for form, text, says in (
        ("nemo", "{train: [1, /a, 3, /b], validation: [/v], test: null}", "left out validation"),
        ("megatron", "1 /d/a 2 /d/b 0 /d/c", "left out /d/c"),
        ("megatron", "1 /d/a 2 /d/b 4 /d/a", "the prefix /d/a stands more than once"),
        ("megatron", "1 /d/a.bin 2 /d/b", "/d/a.bin is a file of the dataset /d/a"),
        ("json", '{"a": 0.3, "b": 0.6, "c": 1.1}', "the weights add up to 2, "),
        ("csv", "domain,weight\na,0.3\ntotal,0.5\n", "the weights add up to 0.8, "),
        ("ratios", "run_id,a,b\nx,1,0\n", "left out b"),
        (
            "csv",
            "domain,weight,Place,tokens\na,1,/x,5\n",
            "columns that are not read: Place, tokens",
        ),
        ("hf", "names: [a, b]\ntokens_per_document: [1, 1]", "drawn equally often"),
    ):
        caplog.clear()
        import_mixture(text, form, "weights.txt")
        assert [r for r in caplog.messages if r.startswith("weights.txt: ") and says in r]


def test_a_list_in_json_keeps_paths() -> None:
    """The path of an entry is recorded, also a list of paths with the tokens of each."""
    facts = {"path": ["/d/b1", "/d/b2"], "part_tokens": [1.0, 3.0]}
    entries = [{"domain": "a", "weight": 1, "path": "/d/a"}, {"domain": "b", "weight": 1, **facts}]
    mixture = import_mixture(json.dumps(entries), "json")
    assert mixture.domains == {"a": {"path": "/d/a"}, "b": facts}


def test_prefixes_that_yaml_would_change() -> None:
    """Unquoted words that YAML takes for numbers, false or dates stay the text of a prefix."""
    names = ["2019_30", "no", "2024-05-01", "0o7", "nan", "inf", "0x1f", "1_0"]
    for text in (
        ", ".join(f"1, {name}" for name in names),
        ", ".join(f"[{name}, 0.5]" for name in names),
        f"[{', '.join(names)}], [{', '.join('1' * len(names))}]",
    ):
        assert import_mixture(f"paths: [{text}]", "nemo").weights == dict.fromkeys(names, 1 / 8)


@pytest.mark.parametrize(
    ("form", "text", "says"),
    [
        ("megatron", "", "a list of weights and prefixes"),
        ("megatron", "0.3 /a 0.7", "entry 3, '0.7', has no prefix after it"),
        ("megatron", "/a /b", "weights are missing: entry 1 is '/a'.*the mixture 'proportional'"),
        ("megatron", "0.3 /a x /b", "entry 3 must be the weight of the prefix after it, not 'x'"),
        ("megatron", "-1 /a 2 /b", "entry 1: the weight is -1, but must be positive"),
        ("megatron", "nan /a 2 /b", "entry 1 must be the weight of the prefix after it, not 'nan'"),
        ("megatron", "1_0 /a 2 /b", "entry 1 must be the weight of the prefix after it, not '1_0'"),
        ("megatron", "1e999 /a 2 /b", "entry 1: the weight is 1e999, but must be positive"),
        ("megatron", "2019 2020 2021 2022", "prefixes cannot be told from weights.* ./2024"),
        ("nemo", "data_prefix: [2019_30, 2020_05, 2021_04, 2021_10]", "the weights are missing"),
        ("nemo", "paths: [[0.5, 2019], [0.5, 2020]]", "prefixes cannot be told from weights"),
        ("megatron", "0 /a 0 /b", "no domain with a weight above 0"),
        ("megatron-per-split", '{"valid": []}', "must have the splits train, validation and test"),
        ("megatron-per-split", "[", "it is not JSON at line 1, column 2"),
        ("megatron-per-split", "[1]", "must be an object"),
        ("megatron-per-split", '{"train": [' + "9" * 5000 + ', "/a"]}', "must be positive"),
        ("nemo", "paths: 3", "weights and prefixes"),
        ("nemo", "paths:\n- 1\n- [", "it is not YAML at line 4"),
        ("nemo", "a: \x07", "characters that YAML does not allow"),
        ("nemo", "a: {paths: [1, a]}\nb: {paths: [1, a]}", "several blends, a.paths, b.paths"),
        ("nemo", "paths: [1, a]\npaths: [1, b]", "line 2: duplicate key 'paths'"),
        ("nemo", "paths: [1, {}, 2, /b]", "entry 2 must be a prefix, which is text, not {}"),
        ("nemo", "paths: [[1, 2], [3, 4]]", "prefixes cannot be told from weights"),
        ("nemo", "paths: " + "[" * 50000, "nested too deeply|not YAML"),
        ("nemo", "paths: &a [1, *a]", "line 1: an anchor contains itself"),
        (
            "nemo",
            "a0: &a0 {x: 1}\n"
            + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 4)}]\n" for i in range(1, 13)),
            "aliases stand for more than 1,000,000 values",
        ),
        ("nemo", "seed: 1", "under the key paths or data_prefix"),
        ("bridge", "dataset: {blend: [[/a, /b], [1]]}", "there are 2 prefixes, but 1 weights"),
        ("bridge", "dataset: {blend: [[/a, /b], null]}", "the weights are missing"),
        ("bridge", "dataset: {blend: [ab, [1, 2]]}", "entry 2 must be a prefix"),
        ("bridge", "dataset: {}", "it has no blend"),
        ("megatron", "1e308 /a 1e308 /b", "too large to be added up"),
        ("hf", '{"names": ["a"], "probabilities": [1]}', "has no 'tokens_per_document'.*json"),
        ("hf", '{"names": ["a"], "probabilities": [1, 2], "tokens_per_document": [1]}', "1 names"),
        (
            "hf",
            '{"names": ["a", "a"], "probabilities": [1, 1], "tokens_per_document": [1, 1]}',
            "duplicate domain 'a'",
        ),
        ("csv", "domain,weight\n,1\nb,1\n", "line 2: a domain must have a name, not ''"),
        ("csv", "domain,weight\na,1\na,2\n", "line 3: duplicate domain 'a'"),
        ("csv", "domain,weight\na,many\n", "line 2, 'a': the weight must be a number, not 'many'"),
        ("csv", "domain;weight\na;0,3\nb;0,7\n", "line 2, 'a': the weight must be.* '0,3'"),
        ("csv", "domain,weight\na,0.3\nb,0.4\nTotal,0.7\n", "'Total' is the sum of the others"),
        ("json", '{"a": 0.3, "b": 0.7, "total": 1}', "'total' is the sum of the others.*delete it"),
        (
            "json",
            '{"a": 0.3, "b": 0.7, "version": 2}',
            "'version' stands beside shares that add up",
        ),
        ("json", '{"a": 0.5, "b": 0.5, "seed": 1e300}', "'seed' stands beside shares"),
        ("json", '{"a": 0.5, "b": 0.5, "seed": 42}', "'seed' stands beside shares.* by 43$"),
        ("csv", "domain,weight\na,.5\nb,.3\nc,.2\nlr,3e-4\n", "'lr' stands beside shares that add"),
        ("csv", "domain,weight\na,1_0\n", "line 2, 'a': the weight must be a number, not '1_0'"),
        ("json", '{"a": NaN}', "entry 1, 'a': the weight must be a number, not 'NaN'"),
        ("csv", "domain,weight\na,1,2\n", "line 2: it has 3 cells, but the header has 2"),
        ("csv", "domain,weight,weight\na,1,2\n", "the column 'weight' twice"),
        ("csv", "domain,weight,Weight\na,1,2\n", "the column 'weight' twice"),
        ("csv", "sep=;\ndomain;weight\na;1;2\n", "line 3: it has 3 cells, but the header has 2"),
        ("csv", "name,share\na,1\n", "it has no column 'domain', but name, share"),
        (
            "csv",
            'domain,weight,path,part_tokens\na,1,"[""/x"", ""/y""]",[5]\n',
            "line 2: 'part_tokens' of domain 'a' must have a number of at least 0 for each path",
        ),
        ("csv", "domain,weight,path\na,1,[5]\n", "line 2: 'path' of domain 'a' must be text"),
        ("csv", "", "the first line must be a header"),
        ("megatron", '0.3 "/d/a" 0.7 "/d/b"', "entry 2, .* has quotes .* take them away"),
        ("megatron", '["0.3","/d/a"]', "it is a list in JSON.*--format nemo"),
        ("megatron", '{"format": 1}', "it is an object in JSON.*use a mixture file as it is"),
        ("megatron", "0.3 /d/a, 0.7 /d/b", "entry 2, '/d/a,', has commas"),
        ("megatron", "0.3,/d/a,0.7,/d/b", "entry 1, .* has commas"),
        ("megatron", "30% /d/a 70% /d/b", "entry 1: the weight must be a number, not '30%'"),
        ("megatron", "0,3 /d/a 0,7 /d/b", "entry 1: the weight must be a number, not '0,3'"),
        ("bridge", 'blend: ["0.3 /d/a 0.7 /d/b"]', "several values in one text"),
        ("bridge", "blend: [[/d/a, /d/b], [0.3, abc]]", "entry 2 of the weights.* not 'abc'"),
        ("bridge", "blend: [[/d/a, /d/b], [30%, 70%]]", "entry 1 of the weights.* not '30%'"),
        ("bridge", "blend: [[/a, /b, /c], [.3, .2, null]]", "entry 3 of the weights.* not null"),
        ("bridge", "blend: [[/d/a, /d/b]]", "entry 1, .* has no weight"),
        ("json", '[{"domain": "a", "weight": 1, "epochs": 2}]', "entry 1: unknown key 'epochs'"),
        ("megatron", "0.3 $DATA/a 0.7 /d/b", "entry 2, .* refers to a variable"),
        ("nemo", "paths: [0.3, /d/a, 0.7, '${oc.env:D}/b']", "entry 4, .* refers to a variable"),
        (
            "nemo",
            "model:\n data:\n  data_prefix: ???\n",
            "entry 1, '\\?\\?\\?', .* still to be set",
        ),
        ("nemo", "paths: [1.0, /d/a, 2.0, '???']", "entry 4, '\\?\\?\\?', .* still to be set"),
        ("bridge", "blend: [[/d/a, <PATH>], [1, 2]]", "entry 2, '<PATH>', .* still to be set"),
        ("ratios", "iteration,loss,a,b\n0,2.31,.5,.5\n", "add up to 3.31, not to 1.*loss, a, b"),
        ("ratios", "run_id,a,b\n1,.5,.5\n2,.5,.5\n", "it has 2 rows"),
        ("ratios", "run_id,a,b\n1,.5,\n", "column 'b': the weight must be a number, not ''"),
        ("json", '{"a": "x"}', "entry 1, 'a': the weight must be a number, not 'x'"),
        ("json", '{"a": 1, "a": 2}', "duplicate key 'a'"),
        ("json", '{"format": 1, "weights": {"a": 1}}', "is a mixture file already"),
        ("json", "3", "must be an object"),
    ],
)
def test_text_of_another_form(form: str, text: str, says: str) -> None:
    """Text that cannot be read is an error in words that names the file and the entry."""
    with pytest.raises(UserError, match=f"weights.txt.*({says})") as error:
        import_mixture(text, form, "weights.txt")
    assert not [word for word in ("Error(", "\n", "Traceback") if word in str(error.value)]


def test_thousands_of_domains_take_seconds() -> None:
    """Reading takes time in proportion to the number of domains."""

    def seconds(count: int, form: str) -> float:
        paths = {f"d{i}": {"path": f"/data/{i % 7}/d{i}"} for i in range(count)}
        mixture = Mixture(Mixture.uniform(paths).weights, domains=paths)
        started = time.process_time()
        import_mixture(export_mixture(mixture, form), form)
        return time.process_time() - started

    for form in ("csv", "ratios", "json", "megatron", "nemo", "bridge"):
        assert seconds(32_000, form) < 16 * max(seconds(4_000, form), 0.05)


def test_formulas_stay_text() -> None:
    """A name that a spreadsheet would compute is written as text, and is read back as it is."""
    names = ["=HYPERLINK(1)", "+1", "-1", "@x", "'=x", "'x", "\t=1", "x=1"]
    weights = Mixture.static(dict.fromkeys(names, 1)).weights
    for form in ("csv", "ratios"):
        text = export_mixture(Mixture(weights), form)
        assert import_mixture(text, form).weights.keys() == weights.keys()
        cells = {cell for row in csv.reader(io.StringIO(text)) for cell in row}
        assert not [cell for cell in cells if cell[:1] in tuple("=+-@\t")]


def test_blanks_and_several_datasets() -> None:
    """Lists hold paths with blanks, and a domain of several datasets has an entry for each."""
    domains: dict[str, dict[str, Any]] = {
        "a": {"path": "/my disk/a"},
        "b": {"path": ["/d/b1", "/d/b2"], "part_tokens": [100, 300]},
    }
    mixture = Mixture({"a": 0.6, "b": 0.4}, domains=domains)
    blend = ["0.6", "/my disk/a", "0.1", "/d/b1", repr(0.4 * 0.75), "/d/b2"]
    assert yaml.safe_load(export_mixture(mixture, "nemo"))["paths"] == blend
    assert json.loads(export_mixture(mixture, "megatron-per-split"))["train"] == blend
    columns = yaml.safe_load(export_mixture(mixture, "bridge"))["dataset"]["blend"]
    assert columns == [blend[1::2], list(map(float, blend[::2]))]
    with pytest.raises(UserError, match="blanks"):
        export_mixture(mixture, "megatron")
    domains["b"]["path"][1] = "/my disk/./a"
    with pytest.raises(UserError, match="is there twice, for domain 'a' and for 'b'"):
        export_mixture(mixture, "nemo")
    domains["b"] = {"path": ["/d/b1", "/d/b2"], "part_tokens": [0, 300]}
    assert yaml.safe_load(export_mixture(mixture, "nemo"))["paths"][3:] == ["/d/b2"]


@pytest.mark.parametrize(
    ("form", "domains", "says"),
    [
        ("megatron", {}, "the mixture has no 'path' for domain 'a'"),
        ("megatron", {"a": {"path": "/my data/a"}, "b": {"path": "/b"}}, "blanks"),
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
    # A spreadsheet saves it with this encoding.
    (tmp_path / "m.csv").write_text((tmp_path / "m.csv").read_text(), encoding="utf-8-sig")
    out, _ = run("import", tmp_path / "m.csv", "--format", "csv", "--output", tmp_path / "n.json")
    assert Mixture.load(tmp_path / "n.json").weights == MIXTURE.weights
    assert "0.7500" in out


@pytest.mark.parametrize("output", ["", ".", "..", "web/", "q.txt", "./q.txt", "~/m.json"])
@pytest.mark.parametrize("action", ["import", "export", "average", "rescore"])
def test_outputs_that_are_no_files(
    action: str,
    output: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A folder, nothing, and the file that is read are refused in one line before the work."""
    monkeypatch.chdir(tmp_path)
    Path("q.txt").write_text("1 /d/a 2 /d/b")
    form = ["--format", "megatron"] if action in ("import", "export") else []
    given = ["nemo-chameleon", "mixture", action, "q.txt", *form, "--output", output]
    monkeypatch.setattr(sys, "argv", given)
    with pytest.raises(SystemExit) as left:
        cli.main()
    said = capsys.readouterr().err
    assert (left.value.code, said.count("\n")) == (2, 1)
    if "q.txt" not in output:
        assert re.search(r"error: --output \S+ is (a folder|empty): name a file|write /", said)
    elif action != "rescore":
        assert "is the file that is read, which would be lost: name another" in said
        monkeypatch.setattr(sys, "argv", [*given[:-1], shlex.split(said)[-1]])
        if action == "import":
            cli.main()
            assert Mixture.load("q-new.json").weights["b"] > 0.6
    assert Path("q.txt").read_text() == "1 /d/a 2 /d/b"
    assert {path.name for path in tmp_path.iterdir()} <= {"q.txt", "q-new.json"}


def test_a_mixture_is_saved_to_a_name(tmp_path: Path) -> None:
    """The Python interface refuses a path without a name too."""
    with pytest.raises(UserError, match=r"cannot write the mixture file \."):
        MIXTURE.save(".")
