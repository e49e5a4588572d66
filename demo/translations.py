"""Write translations of Django's interface as finetuning domains, one per language.

    python -m demo.translations runs/demo-sft/data

Each file has one chat per line. The command does nothing if all files exist. Django is read for its
data and never imported.
"""

import hashlib
import importlib.util
import json
import sys
from pathlib import Path

from nemo_chameleon.utils.console import program
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import write_atomically

LANGUAGES = {
    "german": "de",
    "french": "fr",
    "spanish": "es",
    "italian": "it",
    "polish": "pl",
    "russian": "ru",
    "chinese": "zh_Hans",
}
SHORTEST, LONGEST = 4, 120  # characters of English
MINIMUM = 500  # pairs; a language with fewer is an error


@program
def main() -> None:
    """Write NAME.jsonl of every language into the given folder."""
    if len(sys.argv) != 2:
        raise UserError("usage: python -m demo.translations FOLDER")
    folder = Path(sys.argv[1])
    paths = {name: folder / f"{name}.jsonl" for name in LANGUAGES}
    if all(path.is_file() for path in paths.values()):
        print(f"{folder} is already complete")
        return
    for name, path in paths.items():
        pairs = translations(LANGUAGES[name])
        if len(pairs) < MINIMUM:
            raise UserError(
                f"{name}: found {len(pairs)} pairs, fewer than {MINIMUM}; install "
                "demo/requirements.txt"
            )
        chats = [_chat(name, english, other) for english, other in pairs]
        lines = [json.dumps({"messages": chat}, ensure_ascii=False) for chat in chats]
        write_atomically(path, "\n".join(lines) + "\n")
        print(f"{name:10} {len(lines):,} chats")


def translations(language: str) -> list[tuple[str, str]]:
    """Return distinct English texts with their translations, in a fixed random order.

    Raises:
        UserError: Django is not installed.
    """
    from babel.messages.mofile import read_mo

    spec = importlib.util.find_spec("django")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("Django is not installed; install demo/requirements.txt")
    found: dict[str, str] = {}
    root = Path(spec.submodule_search_locations[0])
    for path in sorted(root.glob(f"**/locale/{language}/LC_MESSAGES/*.mo")):
        with path.open("rb") as stream:
            for message in read_mo(stream):
                english, other = message.id, message.string
                if not (isinstance(english, str) and isinstance(other, str)):
                    continue  # it has plural forms
                if SHORTEST <= len(english) <= LONGEST and other.strip() and other != english:
                    found.setdefault(english, other)
    return sorted(found.items(), key=lambda pair: hashlib.sha256(pair[0].encode()).digest())


def _chat(language: str, english: str, other: str) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": f"{english} In {language.capitalize()}?"},
        {"role": "assistant", "content": other},
    ]


if __name__ == "__main__":
    main()
