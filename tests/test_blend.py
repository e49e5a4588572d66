"""data/blend.py: a mixture decides Megatron's blend and nothing else."""

import builtins
import dataclasses
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from nemo_chameleon import Mixture
from nemo_chameleon.config.data import DataConfig, DatasetConfig, DomainConfig
from nemo_chameleon.config.schema import Config
from nemo_chameleon.data import blend, loading
from nemo_chameleon.data.batch_sampler import BatchSampler
from nemo_chameleon.data.blend import (
    training_dataset,
    validation_datasets,
)
from nemo_chameleon.data.indexed import open_indexed
from nemo_chameleon.data.kinds import kind_of
from nemo_chameleon.data.megatron_indices import FOLDER
from nemo_chameleon.data.sft.dataset import SFTDataset
from nemo_chameleon.data.tokenize import write_dataset
from nemo_chameleon.data.tokenizer import load_tokenizer
from nemo_chameleon.data.vocabulary import Vocabulary
from nemo_chameleon.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("alone")

LOADING = {"fast_cache_load", "defer_npy_index_mmap", "sequences_per_dataset"} & {
    field.name for field in dataclasses.fields(GPTDatasetConfig)
}  # none with megatron-core 0.15


def test_uniform_is_megatrons_builder_with_equal_weights(config: Config) -> None:
    """data.mixture=uniform draws the same samples as Megatron's builder alone."""
    domains = open_indexed(config.data.domains, config.data.split)
    ours = training_dataset(
        config.data, domains, Mixture.uniform(domains), samples=60, seq_length=32, seed=5
    )
    theirs = BlendedMegatronDatasetBuilder(
        GPTDataset,
        [60, 10, 0],
        lambda: True,
        GPTDatasetConfig(
            random_seed=5,
            sequence_length=32,
            blend=([domain.path for domain in domains.values()], [1.0, 1.0, 1.0]),
            split="80,20,0",
            tokenizer=Vocabulary.of(config.data),
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            mid_level_dataset_surplus=0.5,  # the surplus that this package sets for so few samples
        ),
    ).build()[0]
    for index in range(60):
        assert ours[index]["dataset_id"] == theirs[index]["dataset_id"]
        np.testing.assert_array_equal(ours[index]["tokens"], theirs[index]["tokens"])
        np.testing.assert_array_equal(ours[index]["labels"], theirs[index]["labels"])


@pytest.mark.parametrize("samples", [50, 997])
def test_realised_shares_follow_the_mixture(config: Config, samples: int) -> None:
    """The number of samples of a domain is its weight times all samples, within one."""
    domains = open_indexed(config.data.domains, config.data.split)
    mixture = Mixture({"legal": 0.07, "code": 0.61, "prose": 0.32})
    dataset = training_dataset(
        config.data, domains, mixture, samples=samples, seq_length=32, seed=5
    )
    drawn = Counter(int(dataset[index]["dataset_id"]) for index in range(samples))
    for position, name in enumerate(domains):
        assert abs(drawn[position] - samples * mixture.weights[name]) <= 1


def test_rewritten_data_is_not_read_through_an_old_index(config: Config, tmp_path: Path) -> None:
    """Rewritten data under the same prefix is drawn by a new index, not by that of the old data."""
    tokenizer = load_tokenizer(config.data.tokenizer)
    config.data.domains["code"].path = str(tmp_path / "code")
    seen = []
    for text in ("first version " * 40, "second, and longer, version " * 40):
        write_dataset([text + str(i) for i in range(30)], tokenizer, tmp_path / "code")
        domains = open_indexed(config.data.domains, config.data.split)
        dataset = training_dataset(
            config.data, domains, Mixture.uniform(domains), samples=60, seq_length=32, seed=5
        )
        drawn = [dataset[i]["tokens"] for i in range(60) if not dataset[i]["dataset_id"]]
        seen.append(tokenizer.decode(np.concatenate(drawn).tolist()))
    assert "first" in seen[0]
    assert "first" not in seen[1]
    assert "longer" in seen[1]


def test_many_small_domains(config: Config, corpus: Path, tmp_path: Path) -> None:
    """Domains whose share is less than one sample can be built.

    Megatron's own surplus is too small for them.
    """
    tokenizer = load_tokenizer(config.data.tokenizer)
    names = [f"d{i}" for i in range(22)]
    for name in names:
        texts = [f"{name} {i} " * 30 for i in range(5)]
        write_dataset(texts, tokenizer, tmp_path / name)
    configured = {name: DomainConfig(str(tmp_path / name)) for name in names}
    domains = open_indexed(configured, "1,0,0")
    config.data.split = "1,0,0"
    for seed in range(10):
        raw = np.exp(3 * np.random.default_rng(seed).normal(size=22))
        mixture = Mixture.static(dict(zip(names, raw.tolist(), strict=True)))
        dataset = training_dataset(
            config.data, domains, mixture, samples=200, seq_length=32, seed=5
        )
        assert len(dataset) >= 200


def test_validation_is_one_pass_over_each_domain(config: Config) -> None:
    """Validation sets are by name, unblended, and as long as the validation split."""
    domains = open_indexed(config.data.domains, config.data.split)
    validation = validation_datasets(config.data, domains, seq_length=32, seed=5)
    assert list(validation) == list(domains)
    for name, domain in domains.items():
        assert len(validation[name]) == (domain.validation_tokens - 1) // 32


def test_too_little_validation_is_said_beforehand(config: Config) -> None:
    """A validation split that does not fill one sample is refused, and the domain is named."""
    domains = open_indexed(config.data.domains, "100,0,0")
    for run in ("", "proxy."):
        says = rf"'code' has 0 validation tokens .* or set {run}train\.eval_iters=0$"
        with pytest.raises(UserError, match=says):
            kind_of(config.data).require_samples(config.data, domains, 32, f"{run}model.", True)


def test_ranks_share_out_each_iteration() -> None:
    """Whatever their number, the ranks' micro-batches together are the samples of the iteration."""
    for ranks in (1, 2, 4):
        samplers = [BatchSampler(0, 3, 16, 2, rank, ranks) for rank in range(ranks)]
        batches = [list(sampler) for sampler in samplers]
        assert all(
            len(mine) == len(sampler) for mine, sampler in zip(batches, samplers, strict=True)
        )
        per_iteration = 16 // (2 * ranks)
        for iteration in range(3):
            part = slice(iteration * per_iteration, (iteration + 1) * per_iteration)
            drawn = sorted(i for mine in batches for batch in mine[part] for i in batch)
            assert drawn == list(range(16 * iteration, 16 * (iteration + 1)))


def test_sampler_goes_on_where_it_stopped() -> None:
    """A sampler that starts at iteration 2 gives the batches of an uninterrupted run from there."""
    whole = list(BatchSampler(0, 4, 8, 2, 1, 2))
    assert list(BatchSampler(2, 4, 8, 2, 1, 2)) == whole[4:]


def written(prefix: Path, number: int, dtype: type = np.uint16, sequences: int = 1) -> str:
    """Write 30 documents of some sequences, whose tokens are of one thousand of their own."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in range(30):
        size = 12 + document % 5
        tokens = torch.arange(size * sequences) % 1000 + 1000 * number
        builder.add_document(tokens, [size] * sequences)
    builder.finalize(f"{prefix}.idx")
    return str(prefix)


@pytest.fixture
def data(config: Config, tmp_path: Path) -> DataConfig:
    """Return domains of other token types and of documents of several sequences, and a set."""
    data = dataclasses.replace(config.data, tokenizer=None, vocab_size=9_000, split="70,30,0")
    data.domains = {
        "usual": DomainConfig(written(tmp_path / "usual", 1)),
        "wide": DomainConfig(written(tmp_path / "wide", 2, np.int32)),
        "several": DomainConfig(written(tmp_path / "several", 3, sequences=4)),
    }
    data.validation = {"held": DatasetConfig(written(tmp_path / "held", 4, np.int32, 2))}
    return data


def read(data: DataConfig, samples: int = 90) -> dict[str, Any]:
    """Return all samples of a run's datasets, and of which settings the first ones are."""
    domains = open_indexed(data.domains, data.split)
    weights = Mixture.static({name: 1.0 + place for place, name in enumerate(domains)})
    sizes = {"seq_length": 16, "seed": 5}
    drawn = training_dataset(data, domains, weights, samples=samples, **sizes)
    sets = {"training": drawn, **validation_datasets(data, domains, **sizes)}
    found = {
        name: [
            {key: np.asarray(value).tolist() for key, value in dataset[place].items()}
            for place in range(len(dataset))
        ]
        for name, dataset in sets.items()
    }
    mapped = np.asarray(drawn.dataset_index).tolist()
    config = sets["held"].config
    return {
        "sets": found,
        "order": mapped,
        "set": {name: getattr(config, name) for name in LOADING},
    }


@pytest.mark.parametrize("domains", ["several datasets", "one dataset each", "one domain"])
def test_whole_indices_are_loaded_at_less_cost_and_draw_the_same(
    data: DataConfig, domains: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Megatron's default settings read the same samples, lengths and order from the same folders.

    A dataset of another token type, or of documents of several sequences, is read as it is.
    """
    if domains == "one domain":
        data.domains = {"several": data.domains["several"]}
    elif domains == "several datasets":
        parts = [data.domains["usual"].path, written(tmp_path / "part", 5, np.int32)]
        data.domains["usual"] = DomainConfig(parts)
        data.validation["both"] = DatasetConfig(
            [written(tmp_path / f"b{i}", 6 + i) for i in (0, 1)]
        )
    new = read(data)
    folders = sorted((Path(data.cache) / FOLDER).iterdir())
    monkeypatch.setattr(blend, "loading_settings", lambda *_: {})
    stock = read(data)
    assert sorted((Path(data.cache) / FOLDER).iterdir()) == folders
    assert new["sets"] == stock["sets"]
    assert new["order"] == stock["order"]
    assert all(new["sets"].values())
    assert set(map(bool, new["set"].values())) <= {True}
    assert not any(stock["set"].values())


@pytest.mark.skipif(not LOADING, reason="this megatron-core has no such settings")
def test_a_domain_takes_two_files_until_it_is_drawn(
    data: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank opens each .bin and .idx once and looks for no file; first samples map the indices."""
    del data.domains["wide"]  # Megatron reads the header of another token type
    data.validation = {}
    domains = open_indexed(data.domains, data.split)
    opened: Counter[str] = Counter()
    real: dict[str, Any] = {"open": builtins.open, "stat": os.stat}

    def counted(name: str) -> Any:
        def call(path: Any, *arguments: Any, **settings: Any) -> Any:
            if isinstance(path, str | os.PathLike):
                opened[f"{name} {Path(path).name.rsplit('-', 1)[-1]}"] += 1
            return real[name](path, *arguments, **settings)

        return call

    build = blend._Builder.build

    def counting(builder: Any, *arguments: Any) -> Any:
        if not builder.settings:  # the indices are still to be built
            return build(builder, *arguments)
        with monkeypatch.context() as patched:
            patched.setattr(builtins, "open", counted("open"))
            patched.setattr(os, "stat", counted("stat"))
            return build(builder, *arguments)

    monkeypatch.setattr(blend._Builder, "build", counting)
    sizes = {"seq_length": 16, "seed": 5}
    files = [f"open {name}{ending}" for name in domains for ending in (".bin", ".idx")]
    validation_datasets(data, domains, **sizes)
    assert opened == dict.fromkeys(files, 1)
    opened.clear()
    dataset = training_dataset(data, domains, Mixture.uniform(domains), samples=20, **sizes)
    assert opened == dict.fromkeys(files, 1)
    deferred = [of_domain.shuffle_index is None for of_domain in dataset.datasets]
    dataset[int(np.flatnonzero(dataset.dataset_index == 1)[0])]
    assert deferred == [True, True]
    assert [of_domain.shuffle_index is None for of_domain in dataset.datasets] == [True, False]


@pytest.mark.skipif(not LOADING, reason="this megatron-core has no such settings")
def test_sequence_counts_are_those_of_the_files(data: DataConfig, tmp_path: Path) -> None:
    """They are given for whole indices alone, and not for a dataset of another token type."""
    kind, config = blend.dataset_config(data, [], 16, 5, ([], None))
    prefixes = [str(domain.path) for domain in data.domains.values()]
    assert loading.loading_settings(kind, config, str(tmp_path), prefixes) == {}
    (tmp_path / "manifest.json").touch()
    settings = loading.loading_settings(kind, config, str(tmp_path), prefixes)
    assert set(settings) == LOADING
    counts = settings["sequences_per_dataset"]
    assert counts == {prefixes[0]: (30, 31), prefixes[2]: (120, 31)}
    assert counts[prefixes[1]] is None
    assert len(repr(counts)) < 100
    assert loading.loading_settings(SFTDataset, config, str(tmp_path), prefixes) == {}


def test_a_megatron_without_these_settings(
    data: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version that lacks some of them gets the others, and draws the same samples."""
    first, every = read(data), dataclasses.fields(GPTDatasetConfig)
    for lacking in ({"sequences_per_dataset"}, LOADING):
        known = [field for field in every if field.name not in lacking]
        monkeypatch.setattr(loading, "fields", lambda _, known=known: known)
        again = read(data)
        assert again["sets"] == first["sets"]
        assert {name for name, value in again["set"].items() if value} == LOADING - lacking
