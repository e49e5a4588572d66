"""Build the demo's data from real text: a tokenizer, and a dataset per domain or unseen set.

    python -m demo.prepare runs/demo/data

The command does nothing if the data is complete, and writes only the unseen sets where they alone
are missing.
"""

import sys
import time
from pathlib import Path

from demo import text, unseen
from nemo_chameleon.utils.console import program
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import write_atomically

VOCAB_SIZE = 2048
# The tokenizer is trained on equally much text of each domain, whether it is small or large.
TOKENIZER_BYTES = 500_000


@program
def main() -> None:
    """Write tokenizer.json, and NAME.bin and NAME.idx of domains and unseen sets, into a folder."""
    from nemo_chameleon.data.tokenize import write_dataset
    from nemo_chameleon.data.tokenizer import load_tokenizer, train_tokenizer

    if len(sys.argv) != 2:
        raise UserError("usage: python -m demo.prepare FOLDER")
    folder = Path(sys.argv[1])
    done = folder / "tokenizer.json"
    has_domains = done.is_file()
    missing = [
        name for name in unseen.sets() if not (has_domains and (folder / f"{name}.idx").is_file())
    ]
    if not missing:
        print(f"{folder} is already complete")
        return
    started = time.monotonic()
    try:
        domains = {name: text.documents(name) for name in text.domains()}
        known = {
            line for texts in domains.values() for part in texts for line in text.lines_of(part)
        }
        apart = {name: unseen.documents(name, known) for name in missing}
    except ValueError as error:
        raise UserError(str(error)) from error
    if has_domains:
        tokenizer = load_tokenizer(str(done))
    else:
        tokenizer = train_tokenizer(
            (part for texts in domains.values() for part in _first(texts, TOKENIZER_BYTES)),
            VOCAB_SIZE,
        )
    for name, texts in {**({} if has_domains else domains), **apart}.items():
        tokens = write_dataset(texts, tokenizer, folder / name)
        size = sum(len(part.encode()) for part in texts)
        print(f"{name:17} {len(texts):6,} documents {size / 1e6:6.2f} MB {tokens:11,} tokens")
    written = f"{len(apart)} sets that are never trained on"
    if not has_domains:
        write_atomically(done, tokenizer.to_str(pretty=True))
        written = f"{len(domains)} domains and {written}"
    print(f"wrote {written} to {folder} in {time.monotonic() - started:.0f} s")
    if (compared := folder.parent / "compare").is_dir():
        print(f"note: the runs in {compared} were not evaluated on these sets; `rm -r {compared}`")
        print("lets the next `make demo` train them again")


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
