"""data/sft/: lines become samples with loss on answers, and no answer is lost."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from nemo_chameleon import Mixture, cli
from nemo_chameleon.config import load_config
from nemo_chameleon.config.data import DataConfig
from nemo_chameleon.config.schema import Config, RunConfig
from nemo_chameleon.data.blend import training_dataset, validation_datasets
from nemo_chameleon.data.domain import Domain
from nemo_chameleon.data.kinds import kind_of, read_as_recorded
from nemo_chameleon.data.sft import index as indices
from nemo_chameleon.data.sft.dataset import SFTDataset, sample_of
from nemo_chameleon.data.sft.domain import SFTDomain, open_sft_domain
from nemo_chameleon.data.sft.samples import packs_of
from nemo_chameleon.data.sft.tokenize import ExampleTokenizer
from nemo_chameleon.data.token_shares import sample_shares, within_token_bounds
from nemo_chameleon.data.tokenizer import load_tokenizer
from nemo_chameleon.data.vocabulary import Vocabulary
from nemo_chameleon.provider.runs import proxy_run, within_bounds
from nemo_chameleon.utils.errors import UserError
from sft_data import opened, write_jsonl, write_sft_config

pytestmark = pytest.mark.usefixtures("alone")


def open_domains(data: DataConfig, seq_length: int) -> dict[str, Any]:
    """Open the configured domains."""
    return kind_of(data).open_domains(data, seq_length)


def check(data: DataConfig, domains: Mapping[str, Domain], run: RunConfig, prefix: str) -> None:
    """Refuse samples that a run cannot train on."""
    evaluated = bool(run.train.eval_iters)
    length = run.model.seq_length
    kind_of(data).require_samples(data, domains, length, f"{prefix}model.", evaluated)


@pytest.fixture
def sft(corpus: Path, tmp_path: Path) -> Config:
    """Return a configuration with the domains `pairs`, `chats` and `text`."""
    return load_config(write_sft_config(corpus, tmp_path))


def shown(domain: SFTDomain, sft: Config, example: int) -> list[tuple[str, bool]]:
    """Return the tokens of an example, and for each token whether it is part of an answer."""
    tokenizer = load_tokenizer(sft.data.tokenizer)
    tokens = [
        tokenizer.decode([i], skip_special_tokens=False) for i in domain.index.tokens(example)
    ]
    return list(zip(tokens, domain.index.is_answer(example).tolist(), strict=True))


def halves(tokens: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Join neighbouring tokens that are both part of an answer, or both not."""
    joined: list[tuple[str, bool]] = []
    for token, answer in tokens:
        if joined and joined[-1][1] == answer:
            token = joined.pop()[0] + token
        joined.append((token, answer))
    return joined


def test_which_tokens_are_answers(sft: Config) -> None:
    """In each form what is asked is no answer, and an answer includes the token that ends it."""
    chat = [
        {"role": "user", "content": "2+2"},
        {"role": "assistant", "content": "is 4"},
        {"role": "user", "content": "3+3"},
        {"role": "assistant", "content": "6"},
    ]
    domain = opened(
        sft, {"prompt": "two and", "completion": " four"}, {"text": "once"}, {"messages": chat}
    )
    assert halves(shown(domain, sft, 0)) == [("two and", False), (" four<|endoftext|>", True)]
    assert halves(shown(domain, sft, 1)) == [("once<|endoftext|>", True)]
    assert halves(shown(domain, sft, 2)) == [
        ("<user>2+2\n<assistant>", False),
        ("is 4\n", True),
        ("<user>3+3\n<assistant>", False),
        ("6\n", True),
    ]
    assert domain.answer_tokens == sum(sum(domain.index.is_answer(i)) for i in range(3))
    assert domain.tokens == sum(len(domain.index.tokens(i)) for i in range(3))


def test_a_token_across_the_border_is_the_answers(sft: Config) -> None:
    """A token that spans the end of the prompt and the start of the completion is an answer's."""
    domain = opened(sft, {"prompt": "of th", "completion": "e"})
    tokens = shown(domain, sft, 0)
    assert tokens[-2:] == [(" the", True), ("<|endoftext|>", True)]


def test_labels_are_the_next_tokens_and_loss_is_on_answers(sft: Config) -> None:
    """Labels are the next tokens, and the first label with loss is the answer's first token."""
    domain = opened(sft, {"prompt": "QZ", "completion": "XJ"}, {"text": "9W8"})
    sample = sample_of(domain.index, np.array([[0, 0, 5], [1, 0, 4]]))
    tokenizer = load_tokenizer(sft.data.tokenizer)
    ids = {char: tokenizer.token_to_id(char) for char in "QZXJ9W8"}
    end = tokenizer.token_to_id("<|endoftext|>")
    a, b, c, d, x, y, z = ids.values()
    assert domain.index.tokens(0).tolist() == [a, b, c, d, end], "the test's words are one token"
    assert sample["tokens"].tolist() == [a, b, c, d, x, y, z]
    assert sample["labels"].tolist() == [b, c, d, end, y, z, end]
    assert sample["loss_mask"].tolist() == [0, 1, 1, 1, 1, 1, 1]
    assert sample["position_ids"].tolist() == [0, 1, 2, 3, 0, 1, 2]


def dataset_of(sft: Config, domain: SFTDomain, samples: int, length: int = 64) -> SFTDataset:
    """Return the dataset that Megatron's builder makes of one domain."""
    other = opened(sft, {"text": "something else"}, name="other")
    mixture = Mixture({domain.name: 0.5, "other": 0.5})
    blended = training_dataset(
        sft.data,
        {domain.name: domain, "other": other},
        mixture,
        samples=2 * samples,
        seq_length=length,
        seed=1,
    )
    dataset: SFTDataset = blended.datasets[0]
    return dataset


def test_every_answer_once_a_pass(sft: Config) -> None:
    """In a pass every token of an answer carries loss once.

    The next pass has the same samples in another order.
    """
    domain = open_sft_domain(
        "pairs",
        sft.data.domains["pairs"].path,
        sft.data,
        ExampleTokenizer(sft.data),
        seq_length=64,
        split="80,20,0",
    )
    size = len(domain.packs(64))
    dataset = dataset_of(sft, domain, 2 * size)
    passes, orders = [], []
    for epoch in range(2):
        labels: Counter[int] = Counter()
        order = []
        for i in range(epoch * size, (epoch + 1) * size):
            item = dataset[i]
            labels.update(item["labels"][item["loss_mask"] > 0].tolist())
            order.append(item["tokens"].tolist())
        passes.append(labels)
        assert sum(labels.values()) == domain.answer_tokens
        orders.append(order)
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])
    expected: Counter[int] = Counter()
    for example in range(domain.documents):
        expected.update(domain.index.tokens(example)[domain.index.is_answer(example)].tolist())
    assert passes == [expected, expected]


def test_samples_are_filled_with_what_carries_no_loss(sft: Config) -> None:
    """Positions start again at 0 in the padding of a sample, so that no example attends to it."""
    domain = opened(sft, {"prompt": "QZ", "completion": "XJ"})
    item = dataset_of(sft, domain, 2, length=8)[0]
    assert item["loss_mask"].tolist() == [0, 1, 1, 1, 0, 0, 0, 0]
    assert item["position_ids"].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert {name: str(value.dtype) for name, value in item.items()} == {
        "tokens": "torch.int64",
        "labels": "torch.int64",
        "loss_mask": "torch.float32",
        "position_ids": "torch.int64",
    }


def test_examples_alone(sft: Config) -> None:
    """data.packing=false gives each example a sample of its own."""
    pairs = [{"prompt": "a", "completion": str(i)} for i in range(7)]
    assert len(opened(sft, *pairs).packs(64)) == 1
    sft.data.packing = False
    assert len(opened(sft, *pairs).packs(64)) == 7


def test_a_long_text_loses_nothing(sft: Config) -> None:
    """A long text is cut into pieces, and every token but the first is a label."""
    text = "".join(chr(97 + i % 23) for i in range(100))
    domain = opened(sft, {"text": text})
    packs = domain.packs(16)
    assert packs.answers.sum() == domain.tokens - 1
    labels = [sample_of(domain.index, packs.of(i))["labels"] for i in range(len(packs))]
    assert sorted(np.concatenate(labels)) == sorted(domain.index.tokens(0)[1:])


LONG = {"prompt": "".join(chr(97 + i % 23) for i in range(40)), "completion": "mnop"}
LONG_ANSWER = {"prompt": "a", "completion": "".join(chr(97 + i % 23) for i in range(40))}


def test_too_long_is_refused(sft: Config) -> None:
    """Examples that are too long are refused before training, with file, line and what to set."""
    domain = opened(sft, {"text": "ab"}, LONG)
    with pytest.raises(UserError, match=r"1 of 2 examples are longer .*\(mine\.jsonl, line 2\)"):
        check(sft.data, {"mine": domain}, shorter(sft), "")


def shorter(sft: Config) -> Config:
    """Return the configuration with samples of 16 tokens and no evaluation."""
    sft.model.seq_length, sft.train.eval_iters = 16, 0
    return sft


def test_too_long_is_shortened(sft: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """The end of the prompt and the whole answer are kept, and an example with a longer answer is
    left out. Both are reported.
    """
    domain = opened(sft, LONG, LONG_ANSWER, on_too_long="truncate")
    check(sft.data, {"mine": domain}, shorter(sft), "")
    assert (
        "1 lose their beginnings, with 0 tokens of earlier answers; 1 are left out"
        in capsys.readouterr().out
    )
    packs = domain.packs(16)
    assert len(packs) == 1
    sample = sample_of(domain.index, packs.of(0))
    assert len(sample["tokens"]) == 16
    np.testing.assert_array_equal(sample["labels"], domain.index.tokens(0)[-16:])
    answer = domain.index.is_answer(0).sum()
    assert packs.answers.tolist() == [answer]
    assert sample["loss_mask"].tolist() == [0] * (16 - answer) + [1] * answer


def test_an_answer_is_never_cut(sft: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """A shortened chat begins within a prompt, and the tokens of earlier answers that it loses are
    counted.
    """
    chat = [
        {"role": role, "content": f"{role[0]}{turn} " * 3}
        for turn in range(4)
        for role in ("user", "assistant")
    ]
    domain = opened(sft, {"messages": chat}, on_too_long="truncate")
    length = int(domain.index.lengths[0])
    answers = domain.index.is_answer(0)
    for seq_length in range(domain.index.last_answers[0], length - 1):
        packs, _ = packs_of(domain.index, range(1), int(seq_length), domain.packing)
        ((_, start, stop),) = packs.pieces.tolist()
        assert stop == length
        assert stop - start <= seq_length + 1
        assert not answers[start]
    sft.model.seq_length, sft.train.eval_iters = length - 2, 0
    check(sft.data, {"mine": domain}, sft, "")
    assert "with 0 tokens of earlier answers" in capsys.readouterr().out
    sft.model.seq_length = length // 2
    check(sft.data, {"mine": domain}, sft, "")
    start = int(domain.packs(length // 2).pieces[0, 1])
    assert f"with {answers[:start].sum()} tokens of earlier answers" in capsys.readouterr().out


def test_what_is_left_out_counts_for_nothing(sft: Config) -> None:
    """Examples that are left out count neither in a domain's tokens nor in its embedding."""
    pairs = [{"prompt": "Q", "completion": "Z"}, LONG]
    path = write_jsonl(Path(sft.output).parent / "mine.jsonl", pairs)
    sft.data.on_too_long = "skip"
    domain = open_sft_domain("mine", str(path), sft.data, ExampleTokenizer(sft.data), seq_length=16)
    assert domain.tokens == len(domain.index.tokens(0)) == 3
    assert domain.answer_tokens == domain.embeddable_tokens == 2
    drawn = {tuple(domain.window(i, 64, seed=1).tokens) for i in range(50)}
    assert drawn == {tuple(domain.index.tokens(0))}


def test_too_long_is_left_out(sft: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """With on_too_long=skip examples that are too long are left out and reported."""
    domain = opened(sft, LONG, {"prompt": "a", "completion": "b"}, on_too_long="skip")
    check(sft.data, {"mine": domain}, shorter(sft), "")
    assert "mine.jsonl, line 1): 1 are left out" in capsys.readouterr().out
    assert domain.packs(16).pieces[:, 0].tolist() == [1]


def test_ignored_keys_decide_the_index_and_not_the_fingerprint(sft: Config) -> None:
    """An index is made anew for other ignored keys; equal tokens have equal fingerprints."""
    domain = opened(sft, {"text": "ab"})
    sft.data.ignored_keys = ["mood"]
    reader = ExampleTokenizer(sft.data)
    other = open_sft_domain("mine", domain.path, sft.data, reader, seq_length=64)
    assert other.index.folder != domain.index.folder
    assert other.fingerprint == domain.fingerprint


def test_another_version_of_the_readers_makes_a_new_index(
    sft: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read of a file may have changed; equal tokens have equal fingerprints."""
    domain = opened(sft, {"text": "ab"})
    monkeypatch.setattr("nemo_chameleon.data.sft.tokenize.VERSION", -1)
    reader = ExampleTokenizer(sft.data)
    other = open_sft_domain("mine", domain.path, sft.data, reader, seq_length=64)
    assert other.index.folder != domain.index.folder
    assert other.fingerprint == domain.fingerprint


def test_fingerprints_of_earlier_versions(sft: Config) -> None:
    """What could be read before has the fingerprint that mixture files record of it."""
    chat = [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "is 4"}]
    lines: list[dict[str, Any]] = [
        {"prompt": "a", "completion": "b", "id": 1},
        {"text": "once"},
        {"messages": chat},
    ]
    domain = opened(sft, *lines)
    reader = ExampleTokenizer(sft.data)
    hashed = hashlib.sha256(reader.identity.encode())
    for line in lines:
        hashed.update(json.dumps(line).encode() + b"\n")
    for text in ("ab<|endoftext|>", "once<|endoftext|>", "<user>2+2\n<assistant>is 4\n"):
        tokens = reader.tokenizer.encode(text, add_special_tokens=False).ids
        hashed.update(np.array(tokens, dtype=np.int64).tobytes())
    assert domain.fingerprint == hashed.hexdigest()[:32]


def test_a_mixture_file_says_how_lines_were_read(sft: Config) -> None:
    """Domains are added with the same ignored keys; a file of an earlier version has none.

    The value of data.cache, which may come from an environment variable, is not in the file.
    """
    sft.data.ignored_keys = ["mood"]
    record = {"tokenizer": sft.data.tokenizer, **kind_of(sft.data).reading(sft.data, 64)}
    again, _ = read_as_recorded(record, sft.data.domains, "here")
    assert sft.data.cache not in json.dumps(record)
    assert again.cache == "here"
    assert again.ignored_keys == ["mood"]
    assert json.loads(json.dumps(record)) == record
    del record["sft"]["ignored_keys"]
    record["sft"]["cache"] = "there"
    earlier, _ = read_as_recorded(record, sft.data.domains, "here")
    assert (earlier.ignored_keys, earlier.cache) == ([], "there")


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        (None, "there is no such file"),
        ("", "there is no example in 0"),
        ("{\n", "there is no example in 1"),
    ],
)
def test_files_without_examples(sft: Config, contents: str | None, says: str) -> None:
    """A file is refused if it is missing, empty or full of faults, and it is named."""
    path = Path(sft.output).parent / "mine.jsonl"
    if contents is not None:
        path.write_text(contents)
    with pytest.raises(UserError, match=rf"data\.domains\.mine\.path=.*{says}"):
        open_sft_domain(
            "mine", str(path), sft.data, ExampleTokenizer(sft.data), seq_length=sft.model.seq_length
        )


def test_an_index_is_made_once(sft: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index is found again, and another one is made when the data or the tokenizer changes."""
    domain = opened(sft, {"text": "ab"}, {"text": "cd"})
    folder = domain.index.folder
    with monkeypatch.context() as patch:
        patch.setattr(indices, "_write", None)
        again = open_sft_domain(
            "mine",
            domain.path,
            sft.data,
            ExampleTokenizer(sft.data),
            seq_length=sft.model.seq_length,
        )
    assert again.index.folder == folder
    assert again.facts() == domain.facts()
    assert not list(folder.parent.glob("*.tmp"))
    changed = opened(sft, {"text": "ab"}, {"text": "ce"})
    assert changed.index.folder != folder
    assert changed.fingerprint != domain.fingerprint
    copy = opened(sft, {"text": "ab"}, {"text": "ce"}, name="copy")
    assert copy.fingerprint == changed.fingerprint
    assert sft.data.tokenizer is not None
    other = json.loads(Path(sft.data.tokenizer).read_text())
    other["model"]["merges"] = other["model"]["merges"][:-1]
    Path(sft.output).parent.joinpath("tokenizer.json").write_text(json.dumps(other))
    sft.data.tokenizer = str(Path(sft.output).parent / "tokenizer.json")
    assert opened(sft, {"text": "ab"}, {"text": "ce"}).fingerprint != changed.fingerprint


def test_another_job_may_be_faster(sft: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """When two jobs make the same index at once, the first one to finish keeps its place, and the
    other one uses it.
    """
    path = str(write_jsonl(Path(sft.output).parent / "mine.jsonl", [{"text": "ab"}]))
    sources = indices.find_example_files(path, "mine")
    reader, cache, write = ExampleTokenizer(sft.data), Path(sft.data.cache), indices._write

    def slowly(*arguments: Any) -> None:
        monkeypatch.undo()
        indices.build(sources, reader, cache, "mine")
        write(*arguments)

    monkeypatch.setattr(indices, "_write", slowly)
    index = indices.build(sources, reader, cache, "mine")
    assert index.facts["examples"] == 1
    assert [entry.name for entry in cache.iterdir()] == [index.folder.name]


def test_files_of_one_name_are_told_apart(sft: Config) -> None:
    """Files of one name, size and time have different fingerprints, even if they differ in a few
    places alone.
    """
    fingerprints = set()
    for name in ("one", "other"):
        folder = Path(sft.output).parent / name
        folder.mkdir()
        lines = [{"text": "same"}] * 40_000
        lines[5_000:6_000] = [{"text": name[:3] + "x"}] * 1_000
        file = write_jsonl(folder / "train.jsonl", lines)
        os.utime(file, (0, 0))
        domain = open_sft_domain(
            name, str(file), sft.data, ExampleTokenizer(sft.data), seq_length=64
        )
        fingerprints.add(domain.fingerprint)
    assert len(fingerprints) == 2


def test_what_a_tokenizers_file_says_of_lengths_is_not_heeded(sft: Config, corpus: Path) -> None:
    """Truncation and padding that were saved in the tokenizer's file are ignored."""
    tokenizer = Tokenizer.from_file(str(corpus / "tokenizer.json"))
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    sft.data.tokenizer = str(Path(sft.output).parent / "tokenizer.json")
    tokenizer.save(sft.data.tokenizer)
    domain = opened(sft, {"prompt": "QZ", "completion": "XJ9W8"})
    assert halves(shown(domain, sft, 0)) == [("QZ", False), ("XJ9W8<|endoftext|>", True)]


def test_a_vocabulary_whose_ids_have_gaps(sft: Config, corpus: Path) -> None:
    """The size of a vocabulary is the highest id plus one, and large ids are stored whole."""
    other = json.loads((corpus / "tokenizer.json").read_text())
    last = max(other["model"]["vocab"], key=other["model"]["vocab"].get)
    other["model"]["vocab"][last] = 70_000
    sft.data.tokenizer = str(Path(sft.output).parent / "tokenizer.json")
    Path(sft.data.tokenizer).write_text(json.dumps(other))
    word = last.replace("\u0120", " ")
    domain = opened(sft, {"text": f"ab{word}"})
    assert 70_000 in domain.index.tokens(0)
    assert Vocabulary.of(sft.data).vocab_size == 70_001


def test_a_byte_order_mark_is_no_fault(sft: Config) -> None:
    """A byte order mark, empty lines and the line endings of Windows are accepted."""
    path = Path(sft.output).parent / "mine.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "ab"}\r\n\r\n{"text": "cd"}\r\n')
    domain = open_sft_domain("mine", str(path), sft.data, ExampleTokenizer(sft.data), seq_length=64)
    assert [domain.index.line(i) for i in range(2)] == ["mine.jsonl, line 1", "mine.jsonl, line 3"]


def test_a_split_without_examples(sft: Config) -> None:
    """A split without examples is refused before the run, and by the dataset that needs it."""
    domain = opened(sft, {"text": "ab"}, {"text": "cd"})
    for run in ("", "proxy."):
        says = (
            rf"data\.domains\.mine: .* no example to evaluate on: .* set {run}train\.eval_iters=0$"
        )
        with pytest.raises(UserError, match=says):
            check(sft.data, {"mine": domain}, sft, run)
    with pytest.raises(
        UserError, match=r"mine\.jsonl: there is no example for valid under split='80,20,0'"
    ):
        validation_datasets(sft.data, {"mine": domain}, seq_length=64, seed=1)["mine"]


def test_a_proxys_samples_may_be_shorter(sft: Config) -> None:
    """Examples that fit the model's samples and not the proxy's are shortened for the proxy."""
    sft.proxy.model.seq_length = 16
    sft.proxy.train.eval_iters = 0
    domain = opened(sft, LONG, {"prompt": "a", "completion": "b"})
    job = proxy_run(sft, {"mine": domain})
    check(job.config.data, job.domains, sft.proxy, "proxy.")
    mine = job.domains["mine"]
    assert isinstance(mine, SFTDomain)
    assert len(mine.packs(16).pieces) == 2
    assert sft.data.on_too_long == "refuse"


def test_a_folder_of_files(sft: Config) -> None:
    """The domain of a folder has all its files, in the order of their names, in any format."""
    folder = Path(sft.output).parent / "many"
    (folder / "deep").mkdir(parents=True)
    for name in ("b", "a"):
        write_jsonl(folder / f"{name}.jsonl", [{"text": name * 3}, {"text": name * 4}])
    (folder / "deep" / "c.json").write_text('[{"text": "ccc"}, {"text": "cccc"}]')
    domain = open_sft_domain(
        "many", str(folder), sft.data, ExampleTokenizer(sft.data), seq_length=sft.model.seq_length
    )
    assert [domain.index.line(i) for i in range(6)] == [
        *(f"{name}.jsonl, line {line}" for name in "ab" for line in (1, 2)),
        "deep/c.json, record 1",
        "deep/c.json, record 2",
    ]


def test_the_end_of_a_text(sft: Config, corpus: Path) -> None:
    """A text ends with the token that the tokenizer's settings name.

    If the tokenizer has no such token, the domain is refused.
    """
    place = Path(sft.output).parent / "tokenizer.json"
    settings = place.with_name("tokenizer_config.json")
    place.write_text((corpus / "tokenizer.json").read_text())
    sft.data.tokenizer = str(place)
    settings.write_text('{"eos_token": "z"}')
    domain = opened(sft, {"text": "ab"})
    assert "".join(token for token, _ in shown(domain, sft, 0)) == "abz"
    settings.write_text('{"eos_token": "<none>"}')
    with pytest.raises(UserError, match="no token <none> to end texts with"):
        opened(sft, {"text": "ab"})


@pytest.mark.parametrize("alone", [True, False])
def test_windows(sft: Config, alone: bool) -> None:
    """Windows are pieces of examples that count the answers, or all tokens.

    Every token that counts is drawn.
    """
    pairs = [{"prompt": "abc", "completion": f"{i}" * 9} for i in range(4)]
    path = str(write_jsonl(Path(sft.output).parent / "mine.jsonl", pairs))
    domain = open_sft_domain(
        "mine", path, sft.data, ExampleTokenizer(sft.data), seq_length=64, answers_alone=alone
    )
    tokenizer = load_tokenizer(sft.data.tokenizer)
    drawn = set()
    for i in range(200):
        window = domain.window(i, 5, seed=1)
        again = domain.window(i, 5, seed=1)
        assert window.tokens.tolist() == again.tokens.tolist()
        assert len(window.tokens) == len(window.counted) <= 5
        assert window.counted.any()
        drawn.add((tokenizer.decode(window.tokens.tolist()), window.counted.all()))
    texts = {text for text, _ in drawn}
    assert {text[0] for text in texts} == set("a0123")
    assert all(counted for _, counted in drawn) is not alone
    assert domain.embeddable_tokens == (domain.answer_tokens if alone else domain.tokens)


@pytest.mark.parametrize("unit", ["samples", "tokens"])
def test_shares_mean_what_they_say(sft: Config, unit: str) -> None:
    """Over a run the shares of samples, or of answers' tokens, are within 1 % of the mixture's."""
    sft.data.unit, samples = unit, 3000
    domains = open_domains(sft.data, 64)
    mixture = Mixture({"pairs": 0.5, "chats": 0.3, "text": 0.2})
    dataset = training_dataset(sft.data, domains, mixture, samples=samples, seq_length=64, seed=3)
    drawn: Counter[str] = Counter()
    names = list(domains)
    for i in range(samples):
        item = dataset[i]
        count = 1 if unit == "samples" else int(item["loss_mask"].sum())
        drawn[names[item["dataset_id"]]] += count
    for name, weight in mixture.weights.items():
        assert drawn[name] / drawn.total() == pytest.approx(weight, rel=0.01)


class OfAnswers:
    """A domain whose samples all have the same number of answer tokens."""

    def __init__(self, samples: int, answers: int) -> None:
        self.samples, self.answers = samples, answers

    def pass_tokens(self, seq_length: int) -> int:
        return self.samples * seq_length

    def loss_tokens(self, samples: int, seq_length: int, seed: int) -> int:
        return samples * self.answers


@pytest.mark.parametrize("samples", [1_000, 6_000, 9_500])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_max_epochs_in_answers(samples: int, share: float) -> None:
    """However unlike the domains' samples are, no domain is passed over more often than the cap."""
    domains: Any = {"short": OfAnswers(5_000, 50), "long": OfAnswers(5_000, 4_000)}
    sizes: dict[str, Any] = {"samples": samples, "seq_length": 4_096, "seed": 1}
    mixture = Mixture({"short": share, "long": 1 - share})
    free = sample_shares(mixture.weights, domains, **sizes)
    bounded = within_token_bounds(mixture, domains, **sizes, max_epochs=1.0)
    drawn = sample_shares(bounded.weights, domains, **sizes)
    for name in domains:
        assert samples * drawn[name] <= 5_000 * 1.001
        if samples * free[name] > 5_000:
            assert samples * drawn[name] == pytest.approx(5_000, rel=0.001)
    if all(samples * part <= 5_000 for part in free.values()):
        assert bounded == mixture
    with pytest.raises(UserError, match="max_epochs"):
        within_token_bounds(mixture, domains, **{**sizes, "samples": 10_100}, max_epochs=1.0)


@pytest.mark.parametrize("unit", ["samples", "tokens"])
def test_max_epochs(sft: Config, unit: str) -> None:
    """A cap on passes holds in either unit, and the freed share goes to the other domains."""
    sft.data.unit, sft.data.max_epochs = unit, 3.0
    sft.train.train_iters, sft.train.global_batch_size = 60, 8
    domains = open_domains(sft.data, 64)
    mixture = Mixture({"pairs": 0.1, "chats": 0.1, "text": 0.8})
    bounded = within_bounds(sft, domains, mixture)
    dataset = training_dataset(
        sft.data, domains, bounded, samples=480, seq_length=64, seed=sft.train.seed
    )
    drawn = Counter(int(dataset[i]["dataset_id"]) for i in range(480))
    passes = drawn[2] * 64 / domains["text"].pass_tokens(64)
    assert passes == pytest.approx(3.0, abs=0.1)
    assert drawn[0] + drawn[1] > 0.4 * 480


def test_indexed_before_the_run(
    sft: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`nemo-chameleon index` makes the indices that the run then finds, and prints their sizes."""
    file = str(Path(sft.output).parent / "config.yaml")
    monkeypatch.setattr("sys.argv", ["nemo-chameleon", "index", "--config", file])
    cli.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    monkeypatch.setattr(indices, "_write", None)
    domains = open_domains(sft.data, 64)
    assert rows[-3:] == [
        [
            name,
            str(domain.documents),
            f"{domain.tokens:,}",
            f"{domain.tokens_in('tokens'):,}",
            str(len(domain.packs(64))),
        ]
        for name, domain in domains.items()
    ]
