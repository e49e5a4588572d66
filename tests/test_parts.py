"""data/parts.py, data/indexed.py, data/blend.py: a domain of several datasets is one domain."""

import dataclasses
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset
from test_indexed import write

from nemo_chameleon import Mixture
from nemo_chameleon.config.data import DataConfig, DatasetConfig, DomainConfig
from nemo_chameleon.config.schema import Config
from nemo_chameleon.data import indexed
from nemo_chameleon.data.blend import in_turn, training_dataset, validation_datasets
from nemo_chameleon.data.domain import Domain
from nemo_chameleon.data.indexed import IndexedDomain, open_indexed, open_indexed_validation
from nemo_chameleon.data.kinds import kind_of
from nemo_chameleon.mixture.datasets import MOST_DATASETS
from nemo_chameleon.train import trainer
from nemo_chameleon.train.run import TrainingRun
from nemo_chameleon.utils.errors import UserError

SIZES = (5, 12, 3)  # documents of each part
LENGTH = 8
FINGERPRINT = "1a35604004c1b00e075d0b127928184a"  # of 0.2.0
OF_TWO = "8d6408204a28ac0017f219c3d302d8c8"


def documents_of(part: int, count: int, size: int = 21) -> list[list[int]]:
    """Return documents whose tokens, divided by 1000, say which part they belong to."""
    first = 1000 * part
    return [[first + (size * i + j) % 1000 for j in range(size)] for i in range(count)]


@pytest.fixture
def parts(tmp_path: Path) -> list[str]:
    """Return the prefixes of three parts of other sizes and types, the first one written last."""
    (tmp_path / "web").mkdir()
    types = (np.uint16, np.int32, np.int64)
    return [
        write(tmp_path / "web" / f"part-{i}", documents_of(i, SIZES[i]), types[i])
        for i in reversed(range(3))
    ][::-1]


@pytest.fixture
def whole(tmp_path: Path) -> str:
    """Return the prefix of one dataset with the documents of all three parts."""
    return write(tmp_path / "whole", [d for i in range(3) for d in documents_of(i, SIZES[i])])


def test_lists_and_globs_name_the_same_parts(parts: list[str], tmp_path: Path) -> None:
    """A glob is sorted; a list has its own order; a list or a glob of one part is that part."""
    web = tmp_path / "web"
    (web / "part-0.bin.tmp").touch()
    (web / "README").touch()
    for given in (f"{web}/part-*", f"{tmp_path}/**/part-?", [f"{web}/part-[01]", parts[2]]):
        assert IndexedDomain.open("web", given).path == parts
    turned = IndexedDomain.open("web", parts[::-1])
    assert turned.path == parts[::-1]
    assert turned.fingerprint != IndexedDomain.open("web", parts).fingerprint
    alone = IndexedDomain.open("web", parts[1])
    for given in ([parts[1]], f"{web}/part-1*"):
        assert IndexedDomain.open("web", given) == alone
    assert alone.facts().keys() == {"path", "tokens", "documents", "fingerprint"}
    facts = IndexedDomain.open("web", parts).facts()
    assert (facts["path"], facts["part_tokens"]) == (parts, [21 * size for size in SIZES])
    # A prefix that is there may have the characters of a glob in its name.
    assert IndexedDomain.open("w", write(tmp_path / "[v1] *", [[1, 2]])).tokens == 2


def test_the_fingerprint_of_one_dataset_is_that_of_earlier_versions(tmp_path: Path) -> None:
    """Mixture files record fingerprints, so a dataset of more than 64 blocks keeps its own."""
    path = write(tmp_path / "one", [list(range(5000)) for _ in range(40)])
    assert IndexedDomain.open("d", path).fingerprint == FINGERPRINT
    whole = IndexedDomain.open("d", path).parts[0]
    other = write(tmp_path / "other", [[1]])
    several = IndexedDomain.open("d", [path, other])
    assert several.parts[0].identity == whole.identity
    assert several.fingerprint == OF_TWO


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("{web}/none-*", r"^data\.domains\.w\.path=.*/none-\*: the glob matches no dataset"),
        ("{web}/part-*.bin", r"the glob matches no dataset.*write it without \.bin or \.idx"),
        (["{web}/part-1", "{web}/part-*"], "the part .*/web/part-1 is there twice"),
        (["{web}/part-1", "{web}/../web/part-1"], r"web/\.\./web/part-1 is there as .*part-1 too"),
        (["{web}/part-1", "{web}/gone"], r"^data\.domains\.w\.path=.*there is no file .*gone\.bin"),
        ("{web}", r"no file .*web\.bin; for all datasets in this folder, write .*/web/\*$"),
    ],
)
def test_parts_that_are_refused(parts: list[str], path: Any, says: str) -> None:
    """A glob without matches, a part that is there twice and one that is missing are named."""
    web = str(Path(parts[0]).parent)
    filled = [p.format(web=web) for p in ([path] if isinstance(path, str) else path)]
    with pytest.raises(UserError, match=says):
        IndexedDomain.open("w", filled[0] if isinstance(path, str) else filled)


def test_a_part_of_a_glob_that_lacks_a_file(parts: list[str], tmp_path: Path) -> None:
    """A .bin without .idx, or an .idx without .bin, is not left out of what a glob matches."""
    Path(parts[1] + ".idx").unlink()
    Path(parts[2] + ".bin").unlink()
    with pytest.raises(UserError, match=r"2 lack a file: \[.*part-1\.idx, .*part-2\.bin\]; write"):
        IndexedDomain.open("w", f"{tmp_path}/web/part-*")


SPLITS = {
    ("wiki_train", "wiki_valid"): "wiki_valid",
    ("train-v2", "test-v2"): None,
    ("wiki_train_text_document", "wiki_val_text_document"): "wiki_val_text_document",
    ("a/train/tokens", "a/valid/tokens"): "a/valid/tokens",
    ("a/0_train", "a/1_train", "a/0_valid", "a/1_valid"): "a/*_valid",
    ("train/0", "train/1", "dev/0", "dev/1"): "dev/*",
}


@pytest.mark.parametrize("names", SPLITS, ids=" ".join)
def test_a_glob_of_several_splits(names: tuple[str, ...], tmp_path: Path) -> None:
    """Nothing is trained on that is evaluated on: a list says so, a glob of datasets does not."""
    for i, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, documents_of(i, 3))
    with pytest.raises(UserError, match=r"^data\.domains\.d\.path=\S+: .* of several splits") as e:
        IndexedDomain.open("d", f"{tmp_path}/**/*")
    words = [
        word.strip("'")
        for word in str(e.value).split("one split: ")[1].split("; a list")[0].split()
    ]
    named = dict(word.split("=") for word in words if "=" in word)
    held_out = named.pop("data.validation.d.path", None)
    assert held_out == (SPLITS[names] and f"{tmp_path}/{SPLITS[names]}")
    (training,) = named.values()
    found = IndexedDomain.open("d", training).parts
    assert [part.path for part in found] == [f"{tmp_path}/{n}" for n in names if "train" in n]
    assert len(IndexedDomain.open("d", [f"{tmp_path}/{name}" for name in names]).parts) > 1


def test_a_dataset_of_a_numbered_set_that_is_missing(tmp_path: Path) -> None:
    """A glob does not leave out a dataset that its name says must be there."""
    for i in (0, 2):
        write(tmp_path / f"web-{i}-of-3", documents_of(i, 3))
    with pytest.raises(UserError, match=r"web-1-of-3 is missing of a set of 3 files") as caught:
        IndexedDomain.open("d", f"{tmp_path}/web-*")
    named = str(caught.value).split("data.domains.d.path=[")[1].split("]")[0].split(",")
    assert len(IndexedDomain.open("d", named).parts) == 2
    assert len(IndexedDomain.open("d", f"{tmp_path}/web-[02]*").parts) == 2


def test_a_path_of_text(parts: list[str], tmp_path: Path) -> None:
    """Text in place of a dataset, and a dataset that is not finished, are errors with a command."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a b.jsonl").write_text('{"text": "a"}')
    (tmp_path / "a.txt").write_text("a")
    tokenise = "nemo-chameleon prepare --tokenizer t.json --output"
    at = str(tmp_path)
    for path, says in {
        f"{at}/a.txt": f"{tokenise} {at}/a {at}/a.txt and set data.domains.d.path={at}/a",
        f"{at}/a": f"{tokenise} {at}/a {at}/a.txt",
        f"{at}/text": f"{tokenise} {at}/text-tokenised {at}/text and",
        f"{at}/text/a b.jsonl": f"{tokenise} '{at}/text/a b' '{at}/text/a b.jsonl'",
        f"{at}/text/*.jsonl": f"{tokenise} {at}/text-tokenised '{at}/text/*.jsonl'",
    }.items():
        with pytest.raises(UserError) as caught:
            IndexedDomain.open("d", path, tokenizer="t.json")
        assert says in str(caught.value)
    Path(f"{parts[0]}.jsonl").touch()
    for path in (f"{parts[0]}.jsonl", f"{parts[0]}.*"):
        with pytest.raises(UserError, match=f"set data.domains.d.path={parts[0]}"):
            IndexedDomain.open("d", path)
    (tmp_path / "k.unfinished.bin").touch()
    for path in (f"{at}/k", f"{at}/k*"):
        with pytest.raises(UserError, match="begun this dataset and not finished it: wait"):
            IndexedDomain.open("d", path)


def test_data_that_is_there_twice(parts: list[str], tmp_path: Path) -> None:
    """The same part in one domain, in two, or in a domain and a validation set is named."""
    for ending in (".bin", ".idx"):
        shutil.copy(parts[1] + ending, tmp_path / f"copy{ending}")
    copy = str(tmp_path / "copy")
    with pytest.raises(UserError, match=r"the part .*copy is there as .*part-1 too"):
        IndexedDomain.open("web", [*parts, copy])
    for other in (copy, [copy, write(tmp_path / "more", [[1, 2, 3]])]):
        domains = {"web": DomainConfig(parts), "other": DomainConfig(other)}
        with pytest.raises(UserError, match="copy is in 'web' and in 'other': remove it from one"):
            open_indexed(domains, "1,0,0")
    opened = open_indexed({"web": DomainConfig(parts)}, "1,0,0")
    data = DataConfig(validation={"held": DatasetConfig(copy)})
    with pytest.raises(UserError, match=r"validation\.held: domain 'web' trains on .*copy: remove"):
        open_indexed_validation(data, opened)


def test_more_datasets_than_megatron_can_blend(
    parts: list[str], whole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Megatron's limit is on datasets, so the parts of all domains count."""
    known = IndexedDomain.open("web", parts)
    many = dataclasses.replace(known, parts=known.parts * (MOST_DATASETS // 3))
    monkeypatch.setattr(indexed.IndexedDomain, "open", lambda name, *_, **__: many)
    assert len(open_indexed({"a": DomainConfig("a")}, "1,0,0")["a"].parts) == MOST_DATASETS
    with pytest.raises(UserError, match=r"65,532 datasets, but .* only 32,766: merge"):
        open_indexed({"a": DomainConfig("a"), "b": DomainConfig("b")}, "1,0,0")


@pytest.mark.parametrize("cross_documents", [False, True])
def test_windows_are_those_of_the_parts_one_after_the_other(
    parts: list[str], whole: str, cross_documents: bool
) -> None:
    """Windows are drawn over all parts as if they were one dataset."""
    several, one = IndexedDomain.open("web", parts), IndexedDomain.open("web", whole)
    for index in range(200):
        mine = several.window(index, 40, 3, cross_documents=cross_documents)
        its = one.window(index, 40, 3, cross_documents=cross_documents)
        np.testing.assert_array_equal(mine.tokens, its.tokens)
        assert mine.counted.all() and mine.tokens.dtype == np.int64
        assert mine.tokens.flags.owndata, "memory of a dataset is gone when the dataset is closed"


def test_each_part_is_split_by_itself(parts: list[str], tmp_path: Path) -> None:
    """Every part gives its own last documents to validation; one may have nothing to train on."""
    tiny = write(tmp_path / "tiny", [[9999] * 30])
    domain = IndexedDomain.open("web", [*parts, tiny], split="40,60,0")
    assert [part.documents for part in domain.parts] == [2, 5, 1, 0]
    assert (domain.documents, domain.tokens, domain.validation_tokens) == (8, 168, 252 + 30)
    assert domain.datasets == dict(zip(parts, (42, 105, 21), strict=True))
    for cross in (False, True):
        for index in range(100):
            window = domain.window(index, 200, 0, cross_documents=cross)
            assert (window.tokens < 3000).all()
    with pytest.raises(UserError, match="nothing to train on"):
        IndexedDomain.open("web", [tiny, parts[2]], split="10,90,0")


@pytest.fixture
def data(config: Config) -> DataConfig:
    """Return a data configuration whose vocabulary has all ids of the parts."""
    return dataclasses.replace(config.data, tokenizer=None, vocab_size=10_000, split="1,0,0")


def drawn(
    data: DataConfig, domains: dict[str, IndexedDomain], mixture: Mixture, samples: int
) -> list[tuple[int, int]]:
    """Return the domain and the part of each sample; a sample has tokens of one part alone."""
    dataset = training_dataset(data, domains, mixture, samples=samples, seq_length=LENGTH, seed=5)
    found = []
    for index in range(samples):
        sample = dataset[index]
        of_part = np.unique(sample["tokens"] // 1000)
        assert len(of_part) == 1
        found.append((int(sample["dataset_id"]), int(of_part[0])))
    return found


@pytest.mark.usefixtures("alone")
def test_the_domains_follow_one_another_as_if_each_were_one_dataset(
    data: DataConfig, parts: list[str], whole: str, tmp_path: Path
) -> None:
    """Parts change neither the order of the domains nor their shares, and share out the domain."""
    other = write(tmp_path / "other", documents_of(7, 20))
    mixture = Mixture({"web": 0.6, "other": 0.4})
    found = {}
    for name, path in (("several", parts), ("one", whole)):
        domains = {"web": DomainConfig(path), "other": DomainConfig(other)}
        opened = open_indexed(domains, data.split)
        if name == "one":  # its samples have tokens of two parts here and there
            dataset = training_dataset(
                data, opened, mixture, samples=300, seq_length=LENGTH, seed=5
            )
            found[name] = [(int(dataset[i]["dataset_id"]), 0) for i in range(300)]
        else:
            found[name] = drawn(data, opened, mixture, 300)
    assert [domain for domain, _ in found["several"]] == [domain for domain, _ in found["one"]]
    counts = Counter(part for _, part in found["several"])
    assert counts[7] == 120
    for part, size in enumerate(SIZES):
        assert abs(counts[part] - 180 * size / sum(SIZES)) <= 1


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(("many", "samples"), [(30, 40), (120, 10_001)])
def test_many_parts_do_not_follow_on_one_another(
    data: DataConfig, tmp_path: Path, many: int, samples: int
) -> None:
    """The shares of domains hold to within one sample, however many parts a domain has.

    Megatron's own surplus is too small for many small parts beside a large one.
    """
    domains = {}
    for number, name in enumerate(("web", "books")):
        for part in range(many):
            small = [[1000 * number + part, 7]]
            write(tmp_path / f"{name}-{part}", small if part else documents_of(number, 12))
        domains[name] = DomainConfig(f"{tmp_path}/{name}-*")
    mixture = Mixture({"web": 0.3, "books": 0.7})
    opened = open_indexed(domains, data.split)
    dataset = training_dataset(data, opened, mixture, samples=samples, seq_length=64, seed=5)
    ids = np.asarray(dataset.dataset_index[:samples])
    for stop in range(1, min(samples, 2000)):
        assert abs((ids[:stop] == 1).sum() - 0.7 * stop) <= 1
    assert len(dataset) >= samples


@pytest.mark.usefixtures("alone")
def test_validation_is_over_all_parts(
    data: DataConfig, parts: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A domain's validation is one dataset; parts that fill no sample are left out and counted."""
    data.split = "60,40,0"
    domains: dict[str, Domain] = {
        "web": IndexedDomain.open("web", parts, split=data.split),
        "other": IndexedDomain.open("o", write(tmp_path / "o", documents_of(7, 9)), split="60,40"),
    }
    held = [write(tmp_path / f"held-{size}", documents_of(8, 1, size)) for size in (9, 30)]
    data.validation["held"] = DatasetConfig(held)
    validation = validation_datasets(data, domains, seq_length=LENGTH, seed=1)
    # Two, five and one document of 21 tokens: (tokens - 1) // 8 samples of each.
    assert [len(validation[name]) for name in ("web", "other", "held")] == [5 + 13 + 2, 10, 1 + 3]
    of_part = [int(validation["web"][i]["tokens"][0]) // 1000 for i in range(20)]
    assert Counter(of_part) == {0: 5, 1: 13, 2: 2}
    assert len(set(of_part[:8])) == 3, "the first samples are of all parts"
    kind_of(data).require_samples(data, domains, 21, "model.", True)
    assert "domain 'web': 1 of its 3 parts have fewer tokens to evaluate on than the 22" in (
        caplog.text
    )
    assert [len(v) for v in validation_datasets(data, domains, seq_length=21, seed=1).values()] == [
        1 + 4, 3, 1,
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"held has no part of more than 30 tokens, but a sample"):
        kind_of(data).require_samples(data, domains, 60, "model.", True)
    data.validation = {}
    with pytest.raises(UserError, match=r"'web' has no part of more than 105 validation tokens"):
        kind_of(data).require_samples(data, domains, 110, "model.", True)


def test_several_datasets_in_turn() -> None:
    """Any stretch has samples of each dataset in proportion to its size; one stays as it is."""
    one, three = list(range(4)), list(range(100, 112))
    assert in_turn([one]) is one
    mixed = in_turn([one, [], three])
    assert sorted(mixed[i] for i in range(len(mixed))) == one + three
    for start in range(0, 16, 4):
        assert sum(mixed[i] < 100 for i in range(start, start + 4)) == 1


@pytest.mark.usefixtures("alone")
def test_a_run_counts_by_domain_and_resumes(
    config: Config, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose domain has three parts counts, evaluates and resumes as any other run."""
    documents = IndexedDataset(str(corpus / "code"))
    three = [
        write(tmp_path / f"code-{i}", [d.tolist() for d in list(documents)[i::3]]) for i in range(3)
    ]
    config.data.domains["code"].path = three
    config.checkpoint.save_interval = 2
    mixture = Mixture({"code": 0.5, "prose": 0.3, "legal": 0.2}, method={"name": "test"})

    def run(output: str) -> TrainingRun:
        mine = dataclasses.replace(config, output=str(tmp_path / output))
        return TrainingRun(
            "base", mine, mine, open_indexed(mine.data.domains, mine.data.split), mixture
        )

    whole = trainer.train(run("whole"))
    assert list(whole["domains"]) == ["code", "prose", "legal"]
    counts = [domain["samples"] for domain in whole["domains"].values()]
    assert counts == pytest.approx([24, 14.4, 9.6], abs=1)
    code = whole["domains"]["code"]
    assert code["tokens"] == sum(part.tokens for part in run("x").domains["code"].parts)  # type: ignore[attr-defined]
    assert code["epochs"] == pytest.approx(counts[0] * 32 / code["tokens"])
    assert 0 < code["loss"] < 1.2 * np.log(512)

    def stop(model: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.train(run("stopped"), {4: stop})
    resumed = trainer.train(run("stopped"))
    assert resumed["loss"] == pytest.approx(whole["loss"], abs=1e-6)
    assert resumed["domains"] == whole["domains"]
    config.data.domains["code"].path = three[::-1]
    with pytest.raises(UserError, match=r"data\.domains"):
        trainer.train(run("stopped"))
