"""Show what raw and normalised token states make of a real model's embeddings.

    torchrun --nproc_per_node=2 -m benchmarks.token_states MODEL CORPORA [--samples N]

MODEL is the folder of a Hugging Face causal LM (`make test-real` makes one), CORPORA as in
benchmarks/mixtures. The eight domains of SIZE=cpu are embedded after several layers. Then the
documents of every other domain are joined in pairs, joined in tens, or cut in four: the text stays
the same, so weights should not move by more than their sampling error. All of it is done for
windows within documents and across them, for raw and normalised states, and with and without the
tokens that end documents. The script prints its tables and, as its last line, one JSON object.
"""

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nemo_chameleon.data.domain import Window
from nemo_chameleon.data.indexed import IndexedDomain
from nemo_chameleon.data.tokenize import write_dataset
from nemo_chameleon.data.tokenizer import find_tokenizer
from nemo_chameleon.distributed.collectives import on_first_rank
from nemo_chameleon.distributed.processes import process_group
from nemo_chameleon.embedding import embed
from nemo_chameleon.embedding.hooks import Extractor, Part
from nemo_chameleon.embedding.huggingface import HuggingFaceProxy
from nemo_chameleon.method.embeddings import ShardedEmbedding
from nemo_chameleon.method.weights import choose_preset
from nemo_chameleon.mixture.compute import errors_of
from nemo_chameleon.utils.ranks import is_first_rank

DOMAINS = (
    "arxiv_tex books webdocs encyclopedia pkg_descriptions forum_qa code_c math_formal".split()
)
SEED = 1


def whole(documents: Sequence[str]) -> Iterator[str]:
    """Yield the documents as they are."""
    yield from documents


def joined(size: int) -> Callable[[Sequence[str]], Iterator[str]]:
    """Return a function that joins as many documents at a time."""

    def join(documents: Sequence[str]) -> Iterator[str]:
        for start in range(0, len(documents), size):
            yield "\n\n".join(documents[start : start + size])

    return join


def cut_in_four(documents: Sequence[str]) -> Iterator[str]:
    """Yield four parts of each document, cut between words."""
    for document in documents:
        words = document.split(" ")
        ends = [len(words) * part // 4 for part in range(5)]
        yield from (" ".join(words[a:b]) for a, b in itertools.pairwise(ends) if a < b)


SHAPES = {
    "as they are": whole,
    "in pairs": joined(2),
    "in tens": joined(10),
    "cut in four": cut_in_four,
}


def documents_of(file: Path, characters: int) -> list[str]:
    """Return a domain's first documents, up to a number of characters."""
    found, left = [], characters
    with file.open() as lines:
        for line in lines:
            found.append(json.loads(line)["text"])
            left -= len(found[-1])
            if left < 0:
                break
    return found


class WithoutEnds:
    """A domain in whose windows the tokens that end documents do not count."""

    def __init__(self, domain: IndexedDomain, end: int) -> None:
        self.domain, self.end, self.name = domain, end, domain.name

    def window(
        self, index: int, length: int, seed: int, *, cross_documents: bool = False
    ) -> Window:
        tokens, counted = self.domain.window(index, length, seed, cross_documents=cross_documents)
        return Window(tokens, counted & (tokens != self.end))


class Remembering:
    """An extractor that runs the model once for the same windows, until it is told to forget."""

    def __init__(self, extractor: Extractor) -> None:
        self._extractor, self._kept = extractor, dict[bytes, list[Part]]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._extractor, name)

    def parts(self, tokens: torch.Tensor, layers: Sequence[int]) -> Iterator[Part]:
        key = tokens.numpy().tobytes()
        if key not in self._kept:
            self._kept[key] = list(self._extractor.parts(tokens, layers))
        yield from self._kept[key]

    def forget(self) -> None:
        self._kept.clear()


# Across documents; normalised; with the tokens that end documents.
WAYS = list(itertools.product((False, True), repeat=3))
Embedded = dict[tuple[str, int, tuple[bool, bool, bool]], dict[str, ShardedEmbedding]]


def measure(arguments: argparse.Namespace, folder: Path, extractor: Any) -> Embedded:
    """Embed all domains in all ways; every rank calls this."""
    remembering = Remembering(extractor)
    tokenizer = find_tokenizer(arguments.model)
    end = tokenizer.token_to_id("<|endoftext|>")
    found: Embedded = {}
    for shape, change in SHAPES.items():
        changed = arguments.domains if change is whole else arguments.domains[1::2]
        for name in changed:
            file = Path(arguments.corpora) / "pretrain" / f"{name}.train.jsonl"
            prefix = str(folder / shape / name)
            on_first_rank(
                lambda prefix=prefix, file=file, change=change: write_dataset(
                    change(documents_of(file, arguments.characters)), tokenizer, prefix
                )
            )
            domain = IndexedDomain.open(name, prefix)
            for way in WAYS:
                across, normalised, with_ends = way
                by_layer = embed(
                    remembering,
                    {name: domain if with_ends else WithoutEnds(domain, end)},
                    layers=arguments.layers,
                    samples=arguments.samples,
                    sample_length=arguments.length,
                    micro_batch_size=4,
                    seed=SEED,
                    cross_documents=across,
                    normalize_states=normalised,
                )
                for layer, embedded in zip(arguments.layers, by_layer, strict=True):
                    found.setdefault((shape, layer, way), {}).update(embedded)
            remembering.forget()
            if is_first_rank():
                print(f"embedded {name} {shape}, {documents(domain)}", flush=True)
    for shape, layer, way in list(found):
        found[shape, layer, way] = {**found["as they are", layer, way], **found[shape, layer, way]}
    return found


def documents(domain: IndexedDomain) -> str:
    """Describe a domain's documents."""
    return f"{domain.documents} documents of {domain.tokens / domain.documents:.0f} tokens"


def weights(embedded: Mapping[str, ShardedEmbedding], names: Sequence[str]) -> Any:
    """Return the weights (k,) and the half-widths of their intervals (k,)."""
    errors = errors_of([embedded], names, "pretrain", choose_preset())
    assert errors is not None
    return errors.weights, errors.half_widths()


def moved(one: Any, other: Any) -> float:
    """Return the total variation between two mixtures."""
    return float(np.abs(one - other).sum() / 2)


def report(arguments: argparse.Namespace, found: Embedded) -> dict[str, Any]:
    """Print the tables, and return their figures."""
    names, figures = arguments.domains, dict[str, Any]()
    words = {False: "raw", True: "normalised"}
    print(
        "\n| domain | "
        + " | ".join(
            f"layer {layer}, {words[normalised]}"
            for layer in arguments.layers
            for normalised in (False, True)
        )
        + " |"
    )
    print("|---" * (1 + 2 * len(arguments.layers)) + "|")
    for across in (False, True):
        columns = {
            (layer, normalised): weights(
                found["as they are", layer, (across, normalised, True)], names
            )
            for layer in arguments.layers
            for normalised in (False, True)
        }
        for row, name in enumerate(names):
            cells = [f"{w[row]:.3f} ± {half[row]:.3f}" for w, half in columns.values()]
            print(f"| {name}{', across documents' if across else ''} | " + " | ".join(cells) + " |")
        for (layer, normalised), (w, half) in columns.items():
            key = f"{'across' if across else 'within'}/{words[normalised]}/{layer}"
            heaviest = found["as they are", layer, (across, normalised, True)]
            figures[key] = {
                "weights": dict(zip(names, w.tolist(), strict=True)),
                "half_widths": dict(zip(names, half.tolist(), strict=True)),
                "heaviest_share": {n: s.heaviest.share for n, s in heaviest.items() if s.heaviest},
            }
        for normalised in (False, True):
            moves = [
                moved(columns[a, normalised][0], columns[b, normalised][0])
                for a, b in itertools.pairwise(arguments.layers)
            ]
            figures[f"{'across' if across else 'within'}/{words[normalised]}/layers"] = moves
            print(
                f"between layers, {words[normalised]}, {across=}: "
                + ", ".join(f"{move:.3f}" for move in moves)
            )
    print("\nThe same text in other documents: total variation, and the same in sampling errors")
    print(
        "\n| windows | states | ends of documents | layer | " + " | ".join(list(SHAPES)[1:]) + " |"
    )
    print("|---" * (4 + len(SHAPES) - 1) + "|")
    for way in WAYS:
        for layer in arguments.layers:
            before, half = weights(found["as they are", layer, way], names)
            cells = []
            for shape in list(SHAPES)[1:]:
                after, half_after = weights(found[shape, layer, way], names)
                # Half-widths are 1.96 standard errors; the texts are the same, but the windows are
                # drawn anew, so a difference has the errors of both.
                error = np.sqrt(half**2 + half_after**2) / 1.96
                largest = float((np.abs(after - before) / error).max())
                cells.append(f"{moved(before, after):.4f} ({largest:.1f})")
                key = "/".join(map(str, (*way, layer, shape)))
                figures[key] = {"moved": moved(before, after), "in_errors": largest}
            across, normalised, with_ends = way
            print(
                f"| {'across' if across else 'within'} | {words[normalised]} | "
                f"{'count' if with_ends else 'do not count'} | {layer} | "
                + " | ".join(cells)
                + " |"
            )
    return figures


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("corpora")
    parser.add_argument("--domains", nargs="+", default=DOMAINS)
    parser.add_argument("--layers", nargs="+", type=int, default=[10, 15, 20])
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--characters", type=int, default=4_000_000, help="of each domain")
    arguments = parser.parse_args()
    with process_group(), tempfile.TemporaryDirectory() as scratch:
        folder = Path(on_first_rank(lambda: scratch))
        proxy = HuggingFaceProxy.of(arguments.model, torch.float32)
        with proxy.opened() as extractor:
            found = measure(arguments, folder, extractor)
        if is_first_rank():
            print(json.dumps(report(arguments, found)))


if __name__ == "__main__":
    main()
