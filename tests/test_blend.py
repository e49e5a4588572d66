"""data/blend.py: a mixture decides Megatron's blend and nothing else."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

from nemo_chameleon import Mixture
from nemo_chameleon.config.data import DomainConfig
from nemo_chameleon.config.schema import Config
from nemo_chameleon.data.blend import (
    BatchSampler,
    training_dataset,
    validation_datasets,
)
from nemo_chameleon.data.indexed import open_indexed
from nemo_chameleon.data.kinds import kind_of
from nemo_chameleon.data.tokenize import write_dataset
from nemo_chameleon.data.tokenizer import load_tokenizer
from nemo_chameleon.data.vocabulary import Vocabulary
from nemo_chameleon.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("alone")


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
