"""embedding/windows.py and reencoding.py: windows in the tokens of the model that embeds them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from nemo_chameleon.data.domain import Window
from nemo_chameleon.data.indexed import IndexedDomain
from nemo_chameleon.data.tokenize import write_dataset
from nemo_chameleon.data.tokenizer import find_tokenizer, load_tokenizer, train_tokenizer
from nemo_chameleon.embedding.reencoding import Reencoding
from nemo_chameleon.embedding.windows import WindowReader, Windows
from nemo_chameleon.utils.errors import UserError

TEXTS = [
    "The quick brown fox jumps over the lazy dog. Ωραία θάλασσα, ναύτης! " * 3,
    "Žluťoučký kůň úpěl ďábelské ódy — 日本語の文章 and <s> in the text. " * 3,
    "Short.",
] * 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with three tokenizers, and a dataset tokenised with `bytes.json`.

    `bytes.json` has byte-level BPE. `other.json` is the same kind with another vocabulary and
    `<|endoftext|>` under another id. `unigram.json` marks words, lowers case, and cuts to 8 tokens.
    """
    folder = tmp_path_factory.mktemp("tokenizers")
    tokenizer = train_tokenizer(TEXTS, 300)
    tokenizer.save(str(folder / "bytes.json"))
    other = Tokenizer(models.BPE())
    other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    other.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<s>", "<|endoftext|>"]
    other.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    other.save(str(folder / "other.json"))
    unigram = Tokenizer(models.Unigram())
    unigram.normalizer = normalizers.Lowercase()
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Metaspace()
    unigram.train_from_iterator(
        TEXTS,
        trainers.UnigramTrainer(
            vocab_size=120, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
        ),
    )
    unigram.enable_truncation(8)
    unigram.enable_padding(length=99)
    unigram.save(str(folder / "unigram.json"))
    write_dataset(TEXTS, tokenizer, folder / "data")
    return folder


def reencoding(folder: Path, target: str) -> Reencoding:
    """Return how tokens of `bytes.json` become those of another tokenizer."""
    found = Reencoding.between(str(folder / "bytes.json"), str(folder / target))
    assert found is not None
    return found


def window(ids: list[int], counted: list[bool] | None = None) -> Window:
    """Return a window of these tokens."""
    return Window(np.array(ids), np.array(counted or [True] * len(ids)))


def test_text_stays_the_same(folder: Path) -> None:
    """A window's text in the model's tokens is its text in the domain's tokens."""
    source, target = (
        load_tokenizer(str(folder / "bytes.json")),
        find_tokenizer(str(folder / "other.json")),
    )
    text = TEXTS[0]
    (encoded,) = reencoding(folder, "other.json").encode([window(source.encode(text).ids)])
    assert target.decode(encoded.tokens.tolist(), skip_special_tokens=False) == text
    assert encoded.counted.all()


@pytest.mark.parametrize("target", ["other.json", "unigram.json"])
def test_no_special_token_of_either_tokenizer(folder: Path, target: str) -> None:
    """Ends of documents are left out, texts like them are ordinary, nothing is cut or padded."""
    source, own = load_tokenizer(str(folder / "bytes.json")), find_tokenizer(str(folder / target))
    domain = IndexedDomain.open("d", str(folder / "data"))
    end = source.token_to_id("<|endoftext|>")
    drawn = [domain.window(i, 200, seed=1, cross_documents=True) for i in range(20)]
    assert all(end in w.tokens for w in drawn)
    special = {own.token_to_id(token) for token in ("<pad>", "<s>", "<|endoftext|>", "<unk>")}
    for before, after in zip(drawn, reencoding(folder, target).encode(drawn), strict=True):
        assert len(after.tokens) > 20
        # Unigram has no other token for characters that it does not know.
        assert not (special - {None, own.token_to_id("<unk>")}) & set(after.tokens.tolist())
        text = source.decode(before.tokens.tolist()).strip("\ufffd").lower().replace(" ", "")
        again = own.decode(after.tokens.tolist(), skip_special_tokens=False).lower()
        if target == "other.json":
            assert "".join(again.split()) == "".join(text.split())


def test_a_paragraph_break_divides_documents(folder: Path) -> None:
    """Where a document ended there is a paragraph break, which does not count."""
    source = load_tokenizer(str(folder / "bytes.json"))
    target = find_tokenizer(str(folder / "other.json"))
    one, other = source.encode("The end.").ids, source.encode("Next").ids
    end = source.token_to_id("<|endoftext|>")
    assert end is not None
    (encoded,) = reencoding(folder, "other.json").encode([window([*one, end, *other])])
    assert target.decode(encoded.tokens.tolist()) == "The end.\n\nNext"
    assert target.decode(encoded.tokens[encoded.counted].tolist()) == "The end.Next"


def test_tokens_that_do_not_count(folder: Path) -> None:
    """What counted in the domain's tokens counts in the model's, piece by piece."""
    source = load_tokenizer(str(folder / "bytes.json"))
    target = find_tokenizer(str(folder / "other.json"))
    prompt, answer = source.encode("The quick brown").ids, source.encode(" fox jumps").ids
    counted = [False] * len(prompt) + [True] * len(answer)
    (encoded,) = reencoding(folder, "other.json").encode([window(prompt + answer, counted)])
    assert target.decode(encoded.tokens[encoded.counted].tolist()) == " fox jumps"
    assert target.decode(encoded.tokens[~encoded.counted].tolist()) == "The quick brown"


def test_spaces_between_prompt_and_answer(folder: Path, tmp_path: Path) -> None:
    """A space at the beginning of an answer stays, though decoders strip it from a text's start."""
    source = Tokenizer(
        models.WordLevel({f"▁{w}": i for i, w in enumerate("the lazy old dog".split())})
    )
    source.pre_tokenizer, source.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    source.save(str(tmp_path / "words.json"))
    way = Reencoding(str(tmp_path / "words.json"), str(folder / "other.json"), "", "")
    (encoded,) = way.encode([window([0, 1, 2, 3], [False, False, True, True])])
    target = find_tokenizer(str(folder / "other.json"))
    assert target.decode(encoded.tokens.tolist()) == "the lazy old dog"
    assert target.decode(encoded.tokens[encoded.counted].tolist()) == " old dog"


def test_half_characters_at_the_ends_are_left_out(folder: Path) -> None:
    """A window that begins and ends within a character has the characters between."""
    source = load_tokenizer(str(folder / "bytes.json"))
    target = find_tokenizer(str(folder / "other.json"))
    vocabulary = source.get_vocab()
    # The bytes of each character are tokens of their own here.
    ids = [
        vocabulary[pre_tokenizers.ByteLevel(False, False).pre_tokenize_str(c)[0][0][i]]
        for c in "ΩέΩ"
        for i in range(2)
    ]
    (encoded,) = reencoding(folder, "other.json").encode([window(ids[1:-1])])
    assert target.decode(encoded.tokens.tolist()) == "έ"


def test_windows_across_documents_are_full(folder: Path) -> None:
    """However the tokenizers differ, such a window has as many of the model's tokens as are asked
    for; which others are read with it makes no difference.
    """
    domain = IndexedDomain.open("d", str(folder / "data"))
    windows = Windows((1,), 64, seed=3, cross_documents=True)
    for target in ("other.json", "unigram.json"):
        reader = WindowReader(domain, windows, reencoding(folder, target))
        together = reader.read(range(40))
        assert [len(w.tokens) for w in together] == [64] * 40
        alone = WindowReader(domain, windows, reencoding(folder, target)).read([17])
        np.testing.assert_array_equal(alone[0].tokens, together[17].tokens)


def test_windows_within_documents(folder: Path) -> None:
    """Such a window ends with its document, and has at most as many tokens as are asked for."""
    domain = IndexedDomain.open("d", str(folder / "data"))
    windows = Windows((1,), 30, seed=3, cross_documents=False)
    reader = WindowReader(domain, windows, reencoding(folder, "other.json"))
    lengths = [len(w.tokens) for w in reader.read(range(100))]
    assert 20 < max(lengths) <= 30
    assert min(lengths) < 10


def test_embeddable_tokens(folder: Path) -> None:
    """The number of the model's tokens in a domain is estimated to a tenth."""
    domain = IndexedDomain.open("d", str(folder / "data"))
    target = find_tokenizer(str(folder / "other.json"))
    exact = sum(len(target.encode(text).ids) for text in TEXTS)
    windows = Windows((1,), 512, seed=3, cross_documents=True)
    reader = WindowReader(domain, windows, reencoding(folder, "other.json"))
    assert reader.embeddable_tokens == pytest.approx(exact, rel=0.1)
    assert WindowReader(domain, windows, None).embeddable_tokens == domain.tokens


def test_one_vocabulary_is_not_encoded_again(folder: Path, tmp_path: Path) -> None:
    """Nothing is encoded again if the model has all tokens under the same ids, and perhaps more."""
    more = Tokenizer.from_file(str(folder / "bytes.json"))
    more.add_special_tokens(["<extra>"])
    more.save(str(tmp_path / "more.json"))
    source = str(folder / "bytes.json")
    assert Reencoding.between(source, source) is None
    assert Reencoding.between(source, str(tmp_path / "more.json")) is None
    assert Reencoding.between(str(tmp_path / "more.json"), source) is not None


def test_recorded_tokenizers_are_found_again(folder: Path, tmp_path: Path) -> None:
    """A mixture's record leads to its tokenizers, wherever they are now; others are refused."""
    known = reencoding(folder, "other.json")
    proxy = {"tokenizer": known.source, "reencoded": known.record()}
    assert Reencoding.recorded(proxy) == known
    assert Reencoding.recorded({"tokenizer": known.source}) is None
    moved = tmp_path / "moved.json"
    shutil.copy(known.target, moved)
    away = {"tokenizer": known.source, "reencoded": {**known.record(), "tokenizer": "away.json"}}
    places = [str(folder / "unigram.json"), str(moved)]
    assert Reencoding.recorded(away, places) == replace(known, target=str(moved))
    with pytest.raises(UserError, match=r"is not at .*unigram\.json or at away\.json: copy it"):
        Reencoding.recorded(away, [str(folder / "unigram.json")])
    for other in (str(folder / "unigram.json"), str(tmp_path / "none.json")):
        with pytest.raises(UserError, match="the tokenizer of the mixture's domains: name"):
            Reencoding.recorded({**proxy, "tokenizer": other})


def test_another_tokenizer_with_the_same_vocabulary(folder: Path, tmp_path: Path) -> None:
    """A tokenizer that has changed in something else than its vocabulary is not taken for it."""
    known = reencoding(folder, "other.json")
    changed = json.loads((folder / "other.json").read_text())
    changed["model"]["merges"] = changed["model"]["merges"][:5]
    (tmp_path / "changed.json").write_text(json.dumps(changed))
    place = str(tmp_path / "changed.json")
    proxy = {"tokenizer": known.source, "reencoded": {**known.record(), "tokenizer": place}}
    with pytest.raises(UserError, match=r"is not at .*changed\.json"):
        Reencoding.recorded(proxy)


def test_tokenizer_without_a_decoder(folder: Path, tmp_path: Path) -> None:
    """A tokenizer of the domains that does not give their text back is refused."""
    broken = json.loads((folder / "bytes.json").read_text())
    broken["decoder"] = None
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    with pytest.raises(UserError, match=r"broken\.json does not turn its tokens back into text"):
        Reencoding.between(str(tmp_path / "broken.json"), str(folder / "unigram.json"))


def test_a_tokenizer_file_of_any_name(folder: Path, tmp_path: Path) -> None:
    """A file is read as a tokenizer even if its name does not end in .json."""
    shutil.copy(folder / "bytes.json", tmp_path / "tokens")
    assert find_tokenizer(str(tmp_path / "tokens")).get_vocab_size() == 300


def test_tokens_outside_the_vocabulary(folder: Path) -> None:
    """A token that the domains' tokenizer lacks is an error that names both."""
    with pytest.raises(UserError, match=r"token id 5000, which .*bytes\.json lacks"):
        reencoding(folder, "other.json").encode([window([1, 5000])])


def test_answers_are_kept(folder: Path) -> None:
    """Of a text that is too long in the model's tokens, the end that counts is kept."""
    source = load_tokenizer(str(folder / "bytes.json"))
    prompt, answer = source.encode("jumps " * 300).ids, source.encode("Ωραία θάλασσα").ids
    counted = np.array([False] * len(prompt) + [True] * len(answer))

    class Pieces:
        """A domain of one example."""

        name, embeddable_tokens = "d", len(answer)

        def window(self, *_: object, **__: object) -> Window:
            return Window(np.array(prompt + answer), counted)

    pieces: Any = Pieces()
    way = reencoding(folder, "other.json")
    reader = WindowReader(pieces, Windows((1,), 64, seed=0, cross_documents=False), way)
    (read,) = reader.read([0])
    target = find_tokenizer(str(folder / "other.json"))
    assert len(read.tokens) == 64
    assert target.decode(read.tokens[read.counted].tolist()) == "Ωραία θάλασσα"


def test_windows_without_text_are_drawn_again(folder: Path) -> None:
    """Where most documents are empty, every window still has tokens that count."""
    source = load_tokenizer(str(folder / "bytes.json"))
    write_dataset(["", "", "", "", "text and more text"] * 40, source, folder / "sparse")
    domain = IndexedDomain.open("d", str(folder / "sparse"))
    windows = Windows((1,), 8, seed=0, cross_documents=False)
    read = WindowReader(domain, windows, reencoding(folder, "other.json")).read(range(100))
    assert all(w.counted.any() for w in read)


def test_domain_without_text(folder: Path) -> None:
    """A domain whose tokens are no text is an error that names the domain and the tokenizer."""
    source = load_tokenizer(str(folder / "bytes.json"))
    write_dataset([""] * 40, source, folder / "empty")
    domain = IndexedDomain.open("void", str(folder / "empty"))
    windows = Windows((1,), 8, seed=0, cross_documents=False)
    reader = WindowReader(domain, windows, reencoding(folder, "other.json"))
    with pytest.raises(UserError, match=r"domain 'void' has no text .*bytes\.json"):
        reader.read([0])
