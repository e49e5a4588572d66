"""Tells which split the name of a file or a folder says, such as train, test or validation."""

import re
from collections.abc import Collection, Iterator
from itertools import dropwhile
from pathlib import Path

_SPLITS = {
    "train": "training",
    "training": "training",
    "trn": "training",
    "validation": "validation",
    "validate": "validation",
    "validated": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
    "evaluate": "validation",
    "evaluation": "validation",
    "heldout": "validation",
    "holdout": "validation",
    "devtest": "test",
    "test": "test",
    "testing": "test",
    "tst": "test",
}
_ANY = re.compile("tra?i?n|val|dev|eval|test|tst|h[eo]ld", re.IGNORECASE)  # in each of these words
# What may follow the name of a split in the name of a file, apart from numbers and versions. The
# last three are of Megatron's preprocess_data.py, as in wiki_train_text_document.
_ENDINGS = set("of v json jsonl ndjson txt tokens raw parquet arrow gz zst bz2 xz".split())
_ENDINGS |= {"text", "document", "sentence"}
_BORDERS = re.compile(
    r"[\W_]+|(?<=\d)(?=[^\W\d_])|(?<=[^\W\d_])(?=\d)|(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])"
)
_KINDS = re.compile(r"(?:data|sets?|splits?|files?)+$")  # as in testset and split=test
_HELD_OUT = re.compile(r"(h[eo]ld)[-_. ]?(out)", re.IGNORECASE)

_COMPRESSED = re.compile(r"\.(gz|zst|bz2|xz)$", re.IGNORECASE)
_NUMBERS = re.compile(r"([-_.]?\d+([-_]of[-_]\d+)?)+$")  # as in news.en-00001-of-00100
_LONGEST = 12  # characters of an ending
_OF_PROSE = set(
    "txt text raw tokens md markdown tok bpe spm sent sents snt src trg tgt source target doc docs "
    "story clean shuffled tokenized lower lc".split()
)
# ISO 639-1, without those that are also the endings of a programming language.
_LANGUAGES = set(
    "aa ab af ak an ar av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cv cy da de dv dz ee en "
    "eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii "
    "ik io is it iu ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv "
    "mg mh mi mn mr mt my na nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pt qu rm rn ro ru "
    "rw sa sc sd se sg si sk sl sm sn sq sr ss st su sw ta te tg th ti tk tn to tr tt tw ty ug uk "
    "ur uz ve vi vo wa wo xh yi yo za zh zu".split()
)
_CODE_OR_LANGUAGE = set("am as cs el hs mk ml ms pl ps so sv tl ts".split())
_LANGUAGE_AND_REGION = re.compile(
    r"([a-z]{2})[-_]([a-z]{2}|[A-Z]{2}|[A-Z][a-z]{3})|[a-z]{3}_[A-Z][a-z]{3}"
)


def prose_of(files: Collection[Path]) -> set[Path]:
    """Return the files of plain text whose names are those of prose, and not of source code.

    These end in .txt or another ending of text, in the code of a language or in the name of a
    split, or have no ending. Some codes of languages are endings of source code too, such as .pl;
    they are prose if the same name ends in another language's code as well.

    Args:
        files: all files of plain text that are read.

    Returns:
        Those of prose.
    """
    endings = {file: _ending(file) for file in files}
    translated = {
        (file.parent, stem) for file, (stem, ending) in endings.items() if _is_language(ending)
    }
    return {
        file
        for file, (stem, ending) in endings.items()
        if _is_of_prose(ending)
        or (ending in _CODE_OR_LANGUAGE and (file.parent, stem) in translated)
    }


def _is_of_prose(ending: str) -> bool:
    if ending in _CODE_OR_LANGUAGE:
        return False
    lower = ending.lower()
    return (
        not ending
        or lower in _OF_PROSE
        or _is_language(ending)
        or _split_of_word(lower) is not None
    )


def _ending(file: Path) -> tuple[str, str]:
    """Divide a name at its last dot, without compression and the numbers of a part."""
    name = _NUMBERS.sub("", _COMPRESSED.sub("", file.name))
    stem, _, ending = name.rpartition(".")
    return (stem, ending) if stem else (name, "")


def ending_of(file: Path) -> str:
    """Return the ending of a name, without compression and the numbers of a part.

    Args:
        file: the file.

    Returns:
        For instance "txt" of a.txt.gz and of a.txt-00001; empty if the name has none, as most
        names with blanks after their last dot.
    """
    ending = _ending(file)[1]
    return ending if ending.isalnum() and len(ending) <= _LONGEST else ""


def _is_language(ending: str) -> bool:
    if match := _LANGUAGE_AND_REGION.fullmatch(ending):
        return match[1] is None or match[1] in _LANGUAGES | _CODE_OR_LANGUAGE
    return ending in _LANGUAGES


def split_of(path: Path, whole: bool) -> str | None:
    """Return the split that a file or a folder above it is named like, as in train-00000-of-00002.

    Args:
        path: the path below the folder that was named.
        whole: whether the name of the split must be all that stands between two dots, apart from
            numbers and versions; else it may be the first or the last word as well.

    Returns:
        The split; None if there is none.
    """
    if not _ANY.search(str(path)):
        return None
    found = (_split_of_segments(part) if whole else _split_at_ends(part) for part in path.parts)
    return next(filter(None, found), None)


def alike_but_for_split(path: Path) -> Iterator[tuple[tuple[object, ...], str]]:
    """Find the words that say a split anywhere in a name.

    Args:
        path: the path below the folder that was named.

    Yields:
        For each word what is around it, without numbers and endings, which is equal for names that
        differ in this word alone; and the split.
    """
    for depth, part in enumerate(path.parts if _ANY.search(str(path)) else ()):
        is_file = depth == len(path.parts) - 1
        words = _without_numbers(_words(part))
        for i, word in enumerate(words):
            if split := _split_of_word(word):
                yield (path.parts[:depth], is_file, *words[:i], None, *words[i + 1 :]), split


def _words(name: str) -> list[str]:
    """Divide a name into words of letters and numbers, without those that mean files at all."""
    words = _BORDERS.split(_HELD_OUT.sub(r"\1\2", name))
    return [lower for word in words if _KINDS.sub("", lower := word.lower())]


def _without_numbers(words: list[str]) -> list[str]:
    return [word for word in words if not word.isdigit() and word not in _ENDINGS]


def _split_of_word(word: str) -> str | None:
    """Return the split that a word names, as test, tests and testset do."""
    stem = _KINDS.sub("", word)
    return _SPLITS.get(stem) or _SPLITS.get(stem.removesuffix("s"))


def _split_at_ends(name: str) -> str | None:
    words = list(dropwhile(str.isdigit, _words(name)))
    if words and (split := _split_of_word(words[0])):
        return split
    while words and (words[-1].isdigit() or words[-1] in _ENDINGS):
        words.pop()
    return _split_of_word(words[-1]) if words else None


def _split_of_segments(name: str) -> str | None:
    for segment in _HELD_OUT.sub(r"\1\2", name).split("."):
        words = _without_numbers(_words(segment))
        if len(words) == 1 and (split := _split_of_word(words[0])):
            return split
    return None
