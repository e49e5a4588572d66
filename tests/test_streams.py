"""data/epochs.py, streams.py, planned.py: a domain's samples do not depend on other domains."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from test_indexed import write
from test_parts import documents_of

from nemo_chameleon import Mixture
from nemo_chameleon.config import load_config
from nemo_chameleon.config.data import DomainConfig
from nemo_chameleon.config.schema import Config
from nemo_chameleon.data.blend import training_dataset
from nemo_chameleon.data.epochs import SIZES
from nemo_chameleon.data.kinds import kind_of
from nemo_chameleon.data.megatron_indices import FOLDER
from nemo_chameleon.data.planned import PlannedDataset, planned_dataset
from nemo_chameleon.distributed.processes import process_group
from nemo_chameleon.mixture.plan import Blended, Plan, Stage
from nemo_chameleon.utils.errors import UserError
from ranks import on_ranks
from sft_data import write_sft_config

pytestmark = pytest.mark.usefixtures("alone")

LENGTH = 8
Samples = dict[str, list[tuple[int, ...]]]


def plan_of(*stages: tuple[dict[str, float], int]) -> Plan:
    """Return a plan of weights that need not sum to 1."""
    return Plan(tuple(Stage(Mixture.static(weights), samples) for weights, samples in stages))


def built(config: Config, plan: Plan, seed: int = 5) -> PlannedDataset:
    """Open the domains and build the training set of a plan."""
    length = config.model.seq_length
    domains = kind_of(config.data).open_domains(config.data, length)
    return planned_dataset(config.data, domains, plan, seq_length=length, seed=seed)


def drawn(config: Config, plan: Plan, seed: int = 5) -> Samples:
    """Return the samples of each domain in the order in which a run draws them."""
    dataset, found = built(config, plan, seed), Samples()
    names = list(config.data.domains)
    for index in range(len(dataset)):
        sample = dataset[index]
        found.setdefault(names[sample["dataset_id"]], []).append(tuple(sample["tokens"].tolist()))
    return found


@pytest.fixture
def numbered(config: Config, tmp_path: Path) -> Config:
    """Return a configuration of domains in which no token occurs twice; `web` has three parts."""
    parts = [
        write(tmp_path / f"web-{part}", documents_of(part, count), np.uint16)
        for part, count in enumerate((5, 30, 3))
    ]
    config.data.domains = {
        "web": DomainConfig(parts),
        "code": DomainConfig(write(tmp_path / "code", documents_of(4, 40), np.uint16)),
        "wiki": DomainConfig(write(tmp_path / "wiki", documents_of(5, 12), np.uint16)),
    }
    config.data.tokenizer, config.data.vocab_size, config.data.split = None, 9000, "1,0,0"
    config.model.seq_length = LENGTH
    return config


PLAN = plan_of(({"web": 1, "code": 2}, 120), ({"code": 1, "wiki": 3}, 100), ({"web": 1}, 50))
EPOCH = {"web": (5 * 21 - 1) // 8 + (30 * 21 - 1) // 8 + (3 * 21 - 1) // 8, "code": 104, "wiki": 31}


def test_a_domain_repeats_nothing_before_its_epoch_ends(numbered: Config) -> None:
    """Over all stages, no token of a domain is drawn twice in an epoch; epochs differ in order."""
    found = drawn(numbered, PLAN)
    counts = PLAN.counts(PLAN.samples)
    assert {name: len(of_one) for name, of_one in found.items()} == counts
    assert counts["web"] < EPOCH["web"]
    assert counts["wiki"] > 2 * EPOCH["wiki"]
    for name, samples in found.items():
        for first in range(0, len(samples), EPOCH[name]):
            tokens = [token for sample in samples[first : first + EPOCH[name]] for token in sample]
            assert len(tokens) == len(set(tokens)), f"{name}, from its sample {first}"
    assert found["wiki"][: EPOCH["wiki"]] != found["wiki"][EPOCH["wiki"] : 2 * EPOCH["wiki"]]


def test_the_parts_of_a_domain_are_drawn_evenly_and_to_the_end(numbered: Config) -> None:
    """An epoch has every sample of each part; a prefix of it has each part's share."""
    found = drawn(numbered, plan_of(({"web": 1, "code": 1}, 2 * EPOCH["web"])))["web"]
    parts = [sample[0] // 1000 for sample in found]
    assert Counter(parts) == {0: 13, 1: 78, 2: 7}
    assert abs(Counter(parts[:49])[1] - 49 * 78 / 98) <= 1.25


def test_samples_do_not_depend_on_weights_neighbours_or_length(either: Config) -> None:
    """A domain's n-th sample is the same in any plan, and another one with another seed."""
    a, b, c = either.data.domains
    found = drawn(either, plan_of(({a: 1, b: 1, c: 1}, 400)))
    other = drawn(either, plan_of(({b: 1}, 37), ({c: 5, b: 1}, 90)))
    longer = drawn(either, plan_of(({a: 9, b: 1}, 900)))
    for name in (a, b, c):
        for samples in (other.get(name, []), longer.get(name, [])):
            both = min(len(samples), len(found[name]))
            assert samples[:both] == found[name][:both]
    assert drawn(either, plan_of(({a: 1}, 50)), seed=6)[a] != found[a][:50]
    del either.data.domains[c]
    assert drawn(either, plan_of(({a: 1, b: 1}, 60)))[a] == found[a][:30]


@pytest.fixture(params=["gpt", "sft"])
def either(request: pytest.FixtureRequest, config: Config, corpus: Path, tmp_path: Path) -> Config:
    """Return a configuration of three domains, to pretrain and to finetune."""
    if request.param == "gpt":
        return config
    (tmp_path / "sft").mkdir()
    return load_config(write_sft_config(corpus, tmp_path / "sft"), ["data.on_too_long=truncate"])


def test_finetuning_repeats_a_sample_only_in_the_next_epoch(corpus: Path, tmp_path: Path) -> None:
    """Packed samples come once an epoch, each epoch in another order, over stages."""
    file = write_sft_config(corpus, tmp_path)
    config = load_config(file, ["data.on_too_long=truncate"])
    found = drawn(config, plan_of(({"text": 1, "chats": 1}, 150), ({"pairs": 1, "text": 2}, 200)))
    text = found["text"]
    epoch = next(size for size in range(1, len(text)) if text[size] in text[:size])
    assert len(text) >= 2 * epoch
    assert Counter(text[:epoch]) == Counter(text[epoch : 2 * epoch])
    assert text[:epoch] != text[epoch : 2 * epoch]


def test_other_weights_use_the_same_indices(numbered: Config) -> None:
    """A run with other weights builds only the epochs that are not in data.cache yet."""
    folder = Path(numbered.data.cache) / FOLDER

    def folders() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}

    built(numbered, plan_of(({"web": 1, "code": 1}, 100)))
    before = folders()
    assert len(before) == 2, "one epoch of each domain"
    built(numbered, plan_of(({"web": 1, "code": 2}, 100)))
    assert folders() == before
    built(numbered, plan_of(({"web": 1, "code": 5}, 150)))
    after = folders()
    assert after.items() > before.items()
    assert len(after) == 3, "another epoch of one domain"


def test_a_damaged_epoch_is_made_anew(numbered: Config) -> None:
    """An index whose contents are not what was written is put aside; the samples are the same."""
    plan = plan_of(({"web": 1, "code": 1}, 100))
    before = drawn(numbered, plan)
    for path in (Path(numbered.data.cache) / FOLDER).glob("*/*shuffle_index.npy"):
        contents = bytearray(path.read_bytes())
        contents[-1] ^= 1
        path.write_bytes(contents)
    assert drawn(numbered, plan) == before
    assert [*Path(numbered.data.cache).rglob("*.damaged")]


def test_a_domain_that_fills_no_sample_is_an_error(numbered: Config, tmp_path: Path) -> None:
    """A domain shorter than a sample is named; a part that is too short gives no samples."""
    short = write(tmp_path / "short", documents_of(6, 1, LENGTH), np.uint16)
    numbered.data.domains["short"] = DomainConfig(short)
    with pytest.raises(UserError, match=r"domain 'short': no part of it has the 9 tokens"):
        built(numbered, plan_of(({"web": 1, "short": 1}, 10)))
    numbered.data.domains["short"] = DomainConfig(
        [short, write(tmp_path / "long", documents_of(7, 1, 30), np.uint16)]
    )
    found = drawn(numbered, plan_of(({"web": 1, "short": 1}, 6)))["short"]
    assert {sample[0] // 1000 for sample in found} == {7}


def test_data_that_change_during_a_run_are_found(numbered: Config, tmp_path: Path) -> None:
    """A dataset that has other samples when it is opened than at the start is an error."""
    dataset = built(numbered, plan_of(({"code": 1}, 10)))
    write(tmp_path / "code", documents_of(4, 50), np.uint16)
    folder = next((Path(numbered.data.cache) / FOLDER).glob(f"*/{SIZES}")).parent
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(UserError, match="do not change data while a run uses them"):
        dataset[0]


def test_no_sample_is_beyond_the_plan(numbered: Config) -> None:
    """A run ends where its plan ends."""
    dataset = built(numbered, plan_of(({"code": 1}, 10)))
    for index in (-1, 10):
        with pytest.raises(IndexError):
            dataset[index]


def samples_of_rank(file: str) -> list[list[int]]:
    """Return the samples of PLAN that this rank reads, with the number of each."""
    config = load_config(file)
    with process_group():
        dataset = built(config, plan_of(({"code": 2, "prose": 1}, 60), ({"legal": 1}, 30)))
        return [dataset[index]["tokens"].tolist() for index in range(len(dataset))]


def test_ranks_that_read_what_one_has_built_have_the_same_samples(config_file: Path) -> None:
    """Two ranks and one rank alone draw the same samples in the same order."""
    both = on_ranks(2, samples_of_rank, str(config_file))
    assert both[0] == both[1]


def test_a_domain_goes_on_in_the_order_of_the_blend_and_then_in_epochs(numbered: Config) -> None:
    """What a blend has not drawn of a domain comes first, and then all of it in each epoch."""
    web = numbered.data.domains.pop("web")
    domains = kind_of(numbered.data).open_domains(numbered.data, LENGTH)
    of_two = {name: domains[name] for name in ("wiki", "code")}
    mixture, samples = Mixture.uniform(of_two), 40
    blend = training_dataset(
        numbered.data, of_two, mixture, samples=samples, seq_length=LENGTH, seed=5
    )
    drawn = [blend[index] for index in range(20)]
    counts = Counter([*of_two][sample["dataset_id"]] for sample in drawn)
    begun = Stage(mixture, 20, blended=Blended(counts, mixture.weights, samples))
    plan = Plan((begun, Stage(Mixture.static({"wiki": 1}), 90)))
    dataset = built(numbered, plan)
    wiki = [tuple(sample["tokens"].tolist()) for sample in drawn if sample["dataset_id"] == 0]
    wiki += [tuple(dataset[index]["tokens"].tolist()) for index in range(20, 110)]
    assert len(wiki) > 3 * EPOCH["wiki"]
    for first in range(0, len(wiki), EPOCH["wiki"]):
        tokens = [token for sample in wiki[first : first + EPOCH["wiki"]] for token in sample]
        assert len(tokens) == len(set(tokens))
    with pytest.raises(IndexError, match="drawn in the order of Megatron's blend"):
        dataset[19]
    numbered.data.domains["web"] = web
    several = Blended({"web": 1, "code": 19}, {"web": 0.5, "code": 0.5}, samples)
    again = Stage(Mixture.uniform(["web", "code"]), 20, blended=several)
    with pytest.raises(UserError, match="domain 'web' has several parts, so the order"):
        built(numbered, Plan((again, Stage(Mixture.uniform(["web", "code"]), 20))))
