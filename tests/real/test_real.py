"""SmolLM2-135M-Instruct, a model trained on two trillion tokens, imports, embeds and trains.

`make test-real` runs these tests, and makes the model's folder first.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from imported import (
    Results,
    by_megatron,
    by_transformers,
    gathered,
    largest_difference,
    on_each_rank,
)
from nemo_chameleon import Mixture, cli, provider
from nemo_chameleon.config import load_config
from nemo_chameleon.config.data import DataConfig
from nemo_chameleon.data.tokenize import write_dataset
from nemo_chameleon.data.tokenizer import load_tokenizer
from nemo_chameleon.models.import_hf import import_huggingface
from project import ROOT, texts_of_corpus
from ranks import on_ranks

FOLDER = ROOT / "build" / "smollm2"
LAYERS = (1, 8, 15, 22, 30)
# Nine heads in three groups can be divided among three ranks, but not among two.
LAYOUTS: dict[str, dict[str, int]] = {
    "one process": {},
    "TP3": {"tensor": 3},
    "PP2": {"pipeline": 2},
}
DOMAINS = ("code", "prose", "legal")

pytestmark = [
    pytest.mark.usefixtures("alone"),
    pytest.mark.skipif(
        not (FOLDER / "config.json").is_file(), reason="`make test-real` makes the model's folder"
    ),
]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory, alone: None) -> Path:
    """Return the folder of the model's checkpoint."""
    return import_huggingface(FOLDER, tmp_path_factory.mktemp("model") / "imported").path


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    """Return two pieces of the licence (2, 97), as the model's token ids."""
    text = (ROOT / "LICENSE").read_text()
    ids = load_tokenizer(str(FOLDER / "tokenizer.json")).encode(text).ids
    return torch.tensor(ids[: 2 * 97]).view(2, 97)


@pytest.fixture(scope="module")
def computed(imported: Path, tokens: torch.Tensor) -> dict[str, Results]:
    """Return what the checkpoint computes, by the name of the layout."""
    data = DataConfig(tokenizer=str(FOLDER / "tokenizer.json"))
    results = {"one process": by_megatron(str(imported), data, tokens, LAYERS)}
    for name, ranks in (("TP3", 3), ("PP2", 2)):
        run = (str(imported), data, LAYERS, LAYOUTS[name])
        (results[name],) = gathered(on_ranks(ranks, on_each_rank, [run], tokens))
    return results


@pytest.fixture(scope="module")
def expected(tokens: torch.Tensor, alone: None) -> Results:
    """Return what transformers computes."""
    lm = transformers.AutoModelForCausalLM.from_pretrained(FOLDER)
    return by_transformers(lm, tokens, LAYERS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_computes_what_transformers_computes(
    computed: dict[str, Results], expected: Results, layout: str
) -> None:
    """Hidden states after five layers, and losses on the licence, are the same to 1e-3.

    The states of every token count, and not only those few with a hundred times the norm.
    """
    differences = largest_difference(computed[layout], expected)
    print(f"{layout}: {differences}")
    assert max(differences.values()) < 1e-3, differences
    loss, theirs = (float(results["losses"].mean()) for results in (computed[layout], expected))
    print(f"{layout}: loss {loss:.5f}, in transformers {theirs:.5f}")
    assert theirs < 4, "an untrained model has a loss of 10.8"
    assert loss == pytest.approx(theirs, abs=1e-3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with three domains, tokenised with the model's tokenizer."""
    folder = tmp_path_factory.mktemp("data")
    tokenizer = load_tokenizer(str(FOLDER / "tokenizer.json"))
    texts = texts_of_corpus()
    # Alone, the lines of the licence would be windows of a dozen tokens.
    lines = texts["legal"]
    texts["legal"] = ["\n".join(lines[at : at + 8]) for at in range(0, len(lines), 8)]
    for name, documents in texts.items():
        write_dataset(documents, tokenizer, folder / name)
    return folder


def mixture(data: Path, file: Path, *overrides: str, domains: Any = DOMAINS) -> Mixture:
    """Compute the mixture of some of the domains, and write it to a file."""
    settings = [
        f"output={file.parent / 'out'}",
        f"chameleon.file={file}",
        f"data.tokenizer={FOLDER / 'tokenizer.json'}",
        *(f"data.domains.{name}.path={data / name}" for name in domains),
        *("train.train_iters=1", "train.global_batch_size=1", "train.eval_iters=0"),
        *("model.seq_length=64", "chameleon.samples=24", "chameleon.sample_length=64"),
        "logging.progress=false",
    ]
    return provider.resolve_mixture(load_config(None, [*settings, *overrides]))


@pytest.fixture(scope="module")
def by_hf(data: Path, tmp_path_factory: pytest.TempPathFactory, alone: None) -> Mixture:
    """Return the mixture of the three domains through the Hugging Face folder."""
    file = tmp_path_factory.mktemp("hf") / "mixture.json"
    return mixture(data, file, f"proxy.hf={FOLDER}")


def test_both_backends_give_one_mixture(
    by_hf: Mixture, data: Path, imported: Path, tmp_path: Path
) -> None:
    """proxy.hf and proxy.load of the same model give weights that are equal to 1e-3.

    Token states count alike, so nothing warns of heavy tokens.
    """
    by_load = mixture(data, tmp_path / "mixture.json", f"proxy.load={imported}")
    print(by_hf.weights, by_load.weights)
    assert by_load.weights == pytest.approx(by_hf.weights, abs=1e-3)
    for found in (by_hf, by_load):
        assert found.method["layer"] == 15
        assert not any("squared norm" in caveat for caveat in found.method["caveats"])


@pytest.mark.parametrize("backend", ["hf", "load"])
def test_a_domain_that_is_added_later(
    by_hf: Mixture,
    data: Path,
    imported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
) -> None:
    """`mixture add` with the model gives the weights of all domains computed at once."""
    place = FOLDER if backend == "hf" else imported
    file = tmp_path / "mixture.json"
    mixture(data, file, f"proxy.{backend}={place}", domains=DOMAINS[:2])
    added = f"nemo-chameleon mixture add {file} {DOMAINS[2]}={data / DOMAINS[2]}"
    monkeypatch.setattr(sys, "argv", added.split())
    cli.main()
    weights = Mixture.load(file).weights
    assert weights == pytest.approx(by_hf.weights, abs=1e-6 if backend == "hf" else 1e-3)


def test_raw_states_come_with_a_warning(by_hf: Mixture, data: Path, tmp_path: Path) -> None:
    """Without chameleon.normalize_states a few heavy tokens decide, and the mixture says so."""
    raw = mixture(
        data, tmp_path / "mixture.json", f"proxy.hf={FOLDER}", "chameleon.normalize_states=false"
    )
    shares = {name: facts["heaviest_share"] for name, facts in raw.domains.items()}
    print(shares, raw.weights, raw.method["caveats"])
    assert min(shares.values()) > 0.1
    (caveat,) = (text for text in raw.method["caveats"] if "squared norm" in text)
    assert "in the output of layer 15" in caveat
    assert "set chameleon.normalize_states=true" in caveat
    assert max(abs(raw.weights[name] - by_hf.weights[name]) for name in DOMAINS) > 0.01
