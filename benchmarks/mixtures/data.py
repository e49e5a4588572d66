"""Turn texts into Megatron datasets: a tokenizer, and NAME.train and NAME.val for each domain.

The texts are the demo's, or those of `CORPORA/NAME.train.jsonl` and `NAME.val.jsonl`, with one JSON
object per line that has a key "text". An unseen domain gets a validation set only, made from both
of its files; its documents that copy training text are dropped.
"""

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.mixtures.size import Size, size_called
from demo import text as demo
from nemo_chameleon.data.indexed import IndexedDomain
from nemo_chameleon.data.readers import files_of, find_files, read_lines, text_at
from nemo_chameleon.data.tokenize import write_dataset
from nemo_chameleon.data.tokenizer import load_tokenizer, train_tokenizer
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import write_atomically

TOKENIZER_CHARACTERS = 2_000_000  # per domain
UNSEEN_CHARACTERS = 2_000_000  # per domain
WINDOW = 13  # words; a sequence of this length that occurs in two texts counts as copied


def prepare(size: Size, corpora: Path | None) -> None:
    """Make the data of a size, unless it exists.

    Raises:
        UserError: the folder of the texts is not given.
    """
    done = size.data / "data.json"
    if done.is_file():
        return
    if corpora is None and size.corpora != "demo":
        raise UserError(
            f"SIZE={size.name} needs CORPORA=FOLDER; benchmarks/mixtures/README.md describes it"
        )
    texts = {name: _texts(size, corpora, name) for name in [*size.domains, *size.unseen]}
    for name in size.domains:
        if size.characters is not None:
            texts[name]["train"] = list(_up_to(size.characters, texts[name]["train"]))
    if size.start is not None:
        start = size_called(size.start)
        prepare(start, corpora)
        tokenizer = load_tokenizer(str(start.data / "tokenizer.json"))
    elif size.vocab_size is None:
        raise UserError(f"sizes/{size.name}.yaml must set vocab_size or start")
    else:
        tokenizer = train_tokenizer(
            itertools.chain.from_iterable(
                _up_to(TOKENIZER_CHARACTERS, texts[name]["train"]) for name in size.domains
            ),
            size.vocab_size,
        )
    facts: dict[str, Any] = {"domains": {}, "unseen": {}}
    for name in size.domains:
        train, validation = (
            _written(texts[name][part], tokenizer, size.data / f"{name}.{part}")
            for part in ("train", "val")
        )
        facts["domains"][name] = train | {"validation": validation}
    unseen = {
        name: list(_up_to(UNSEEN_CHARACTERS, texts[name]["val"] + texts[name]["train"]))
        for name in size.unseen
    }
    training = {name: texts[name]["train"] for name in size.domains}
    if size.start is not None:
        start = size_called(size.start)
        training |= {name: _texts(start, corpora, name)["train"] for name in start.domains}
    copied = _shared_with(training, unseen)
    for name, documents in unseen.items():
        kept = [text for text, share in zip(documents, copied[name], strict=True) if share <= 0.5]
        facts["unseen"][name] = {
            **_written(kept, tokenizer, size.data / f"{name}.val"),
            "documents": len(kept),
            "dropped as copies": len(documents) - len(kept),
            "still shared with the domains": _mean([s for s in copied[name] if s <= 0.5]),
        }
    tokenizer.save(str(size.data / "tokenizer.json"))
    write_atomically(done, json.dumps(facts, indent=1) + "\n")


def _texts(size: Size, corpora: Path | None, name: str) -> dict[str, list[str]]:
    if size.corpora == "demo":
        documents = demo.documents(name)
        return {"train": documents[20:], "val": documents[:20]}
    assert corpora is not None
    folder = corpora / size.corpora
    files = {part: find_files([f"{folder}/{name}.{part}.jsonl"]) for part in ("train", "val")}
    return {
        part: [text_at(line.text, "text") for line in read_lines(files_of(found)[0])]
        for part, found in files.items()
    }


def _up_to(characters: int, texts: Iterable[str]) -> Iterator[str]:
    total = 0
    for text in texts:
        total += len(text)
        if total > characters:
            return
        yield text


def _written(texts: list[str], tokenizer: Any, prefix: Path) -> dict[str, Any]:
    """Write a dataset; return its fingerprint and its sizes in tokens and in bytes of UTF-8."""
    write_dataset(texts, tokenizer, prefix)
    domain = IndexedDomain.open(prefix.name, str(prefix))
    size = sum(len(text.encode()) for text in texts)
    return {"tokens": domain.tokens, "bytes": size, "fingerprint": domain.fingerprint}


def _shared_with(
    training: dict[str, list[str]], unseen: dict[str, list[str]]
) -> dict[str, list[float]]:
    """Return the share of each unseen document's windows that occurs in any training text."""
    windows = {
        name: [_windows(text, WINDOW) for text in documents] for name, documents in unseen.items()
    }
    wanted = {w for documents in windows.values() for document in documents for w in document}
    found: set[int] = set()
    for texts in training.values():
        for text in texts:
            found.update(wanted.intersection(_windows(text, 1)))
    return {
        name: [_mean([w in found for w in document]) for document in documents]
        for name, documents in windows.items()
    }


def _windows(text: str, step: int) -> list[int]:
    words = text.split()
    return [hash(tuple(words[i : i + WINDOW])) for i in range(0, len(words) - WINDOW, step)]


def _mean(values: list[Any]) -> float:
    return sum(values) / len(values) if values else 0.0
