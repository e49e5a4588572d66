"""Build the demo's data from real text: a tokenizer and one Megatron dataset per domain.

    python -m demo.prepare runs/demo/data

The command does nothing if the data is complete.
"""

import sys
import time
from pathlib import Path

from demo import text
from nemo_chameleon.utils.console import program
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import write_atomically

VOCAB_SIZE = 2048
# The tokenizer is trained on equally much text of each domain, whether it is small or large.
TOKENIZER_BYTES = 500_000


@program
def main() -> None:
    """Write tokenizer.json, and NAME.bin and NAME.idx of every domain, into the given folder."""
    from nemo_chameleon.data.tokenize import write_dataset
    from nemo_chameleon.data.tokenizer import train_tokenizer

    if len(sys.argv) != 2:
        raise UserError("usage: python -m demo.prepare FOLDER")
    folder = Path(sys.argv[1])
    done = folder / "tokenizer.json"
    if done.is_file():
        print(f"{folder} is already complete")
        return
    started = time.monotonic()
    try:
        documents = {name: text.documents(name) for name in text.domains()}
    except ValueError as error:
        raise UserError(str(error)) from error
    tokenizer = train_tokenizer(
        (part for texts in documents.values() for part in _first(texts, TOKENIZER_BYTES)),
        VOCAB_SIZE,
    )
    for name, texts in documents.items():
        tokens = write_dataset(texts, tokenizer, folder / name)
        size = sum(len(part.encode()) for part in texts)
        print(f"{name:12} {len(texts):6,} documents {size / 1e6:6.1f} MB {tokens:11,} tokens")
    write_atomically(done, tokenizer.to_str(pretty=True))
    print(f"wrote {len(documents)} domains to {folder} in {time.monotonic() - started:.0f} s")


def _first(texts: list[str], size: int) -> list[str]:
    """Return the first texts, up to `size` bytes in all."""
    taken, total = [], 0
    for part in texts:
        total += len(part.encode())
        if total > size:
            break
        taken.append(part)
    return taken


if __name__ == "__main__":
    main()
