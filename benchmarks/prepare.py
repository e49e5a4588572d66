"""Compare `nemo-chameleon prepare` with Megatron-LM's tools/preprocess_data.py, side by side.

    python -m benchmarks.prepare --megatron FOLDER [--text FOLDER] [--tokenizer FOLDER]

FOLDER of --megatron is a checkout of Megatron-LM, and --text names a folder of JSONL. Both programs
tokenise the same JSONL with the same Hugging Face tokenizer and end each document with the same
token; the benchmark fails if their .bin and .idx are not the same bytes. Each program is timed as a
whole, and the programs take turns; the shortest of their times counts. Processor seconds are those
of all processes of a program, less those that it takes for the first document alone, which are
imports. On a machine that others use too they are the figure to look at. The script prints a table
and, as its last line, one JSON object.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from nemo_chameleon.data.readers import files_of, find_files, read_lines, text_at
from nemo_chameleon.data.tokenizer import END_OF_DOCUMENT, train_tokenizer
from nemo_chameleon.utils.console import program
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.tables import table

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = Path(argparse.__file__).parent


def _documents(path: str) -> Iterator[str]:
    files, _ = files_of(find_files([path]))
    return (text_at(line.text, "text") for line in read_lines(files))


def texts(folder: str | None, size: int) -> Iterator[str]:
    """Yield texts of the JSONL in a folder, or of the standard library, of a size in characters."""
    if folder is None:
        every = [path.read_text(errors="ignore") for path in sorted(LIBRARY.glob("**/*.py"))]
        files: list[Iterable[str]] = [every]
    else:
        paths = [str(path) for path in sorted(Path(folder).rglob("*.jsonl*"))]
        files = [_documents(path) for path in paths]
    for file in files:
        left = size / len(files)
        for text in file:
            # Megatron writes nothing for an empty document, where prepare writes its end.
            if text.strip():
                yield text
                left -= len(text)
            if left <= 0:
                break


def prepare_data(folder: Path, arguments: argparse.Namespace) -> None:
    """Write all.jsonl, one.jsonl with the first document, and a tokenizer."""
    chosen = list(texts(arguments.text, arguments.megabytes * 1_000_000))
    for name, part in (("all", chosen), ("one", chosen[:1])):
        lines = (json.dumps({"text": text}) + "\n" for text in part)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    if arguments.tokenizer is None:
        (folder / "tokenizer").mkdir()
        train_tokenizer(chosen, 8000).save(str(folder / "tokenizer" / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_DOCUMENT}
        (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings))


def commands(
    data: str, workers: int, tokenizer: str, megatron: Path, output: Path
) -> dict[str, list[str]]:
    """Return the command of each program."""
    ours = [sys.executable, "-m", "nemo_chameleon", "prepare", "--tokenizer", tokenizer]
    ours += ["--workers", str(workers), "--output", f"{output}-ours", data]
    theirs = [sys.executable, str(megatron / "tools" / "preprocess_data.py"), "--append-eod"]
    theirs += ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", tokenizer]
    theirs += ["--workers", str(workers), "--output-prefix", f"{output}-theirs", "--input", data]
    return {"prepare": ours, "preprocess_data.py": theirs}


def seconds(command: list[str], folders: list[Path]) -> tuple[float, float]:
    """Run a program; return its seconds, and the processor's in all of its processes."""
    paths = [*map(str, folders), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    taken, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return taken, used


def require_same(output: Path) -> int:
    """Check that both programs wrote the same dataset, and return its size in bytes."""
    for ending in ("bin", "idx"):
        ours, theirs = (
            Path(f"{output}-ours.{ending}"),
            Path(f"{output}-theirs_text_document.{ending}"),
        )
        if ours.read_bytes() != theirs.read_bytes():
            raise UserError(f"the two programs wrote different .{ending} files")
    return Path(f"{output}-ours.bin").stat().st_size


@program
def main() -> None:
    """Time both programs with 1 and 2 processes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megatron", required=True, type=Path, help="checkout of Megatron-LM")
    parser.add_argument("--text", help="folder of JSONL (default: the standard library)")
    parser.add_argument("--tokenizer", help="folder of a tokenizer (default: one is trained)")
    parser.add_argument("--megabytes", type=int, default=20, help="size (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs (default: %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    arguments.megatron = arguments.megatron.resolve()
    figures = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare_data(folder, arguments)
        tokenizer = arguments.tokenizer or str(folder / "tokenizer")
        for workers in arguments.workers:
            best: dict[tuple[str, str], tuple[float, float]] = {}
            for _ in range(arguments.repeats):
                for part in ("one", "all"):
                    data = str(folder / f"{part}.jsonl")
                    every = commands(data, workers, tokenizer, arguments.megatron, folder / part)
                    for name, command in every.items():
                        root = ROOT if name == "prepare" else arguments.megatron
                        taken = seconds(command, [root])
                        known = best.get((name, part), taken)
                        best[name, part] = (min(known[0], taken[0]), min(known[1], taken[1]))
            require_same(folder / "all")
            tokens = json.loads((folder / "all-ours.info.json").read_text())["tokens"]
            for name in every:
                whole, start = best[name, "all"], best[name, "one"]
                figures.append(
                    {
                        "program": name,
                        "workers": workers,
                        "tokens": tokens,
                        "seconds": round(whole[0], 2),
                        "tokens/s": round(tokens / whole[0]),
                        "tokens per processor second": round(tokens / (whole[1] - start[1])),
                    }
                )
    header = list(figures[0])
    rows = [[f"{v:,}" if isinstance(v, (int, float)) else v for v in f.values()] for f in figures]
    print(table(header, rows))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
