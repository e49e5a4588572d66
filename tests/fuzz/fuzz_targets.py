"""The readers of the package, each with valid inputs that are made on the spot."""

import bz2
import gzip
import json
import lzma
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import torch
import yaml
import zstandard
from megatron.core.datasets.indexed_dataset import IndexedDataset
from pyarrow import parquet
from torch.distributed.checkpoint import state_dict_saver

from fuzzing import Target
from nemo_chameleon.config.loading import load_config
from nemo_chameleon.config.validation import check
from nemo_chameleon.data.given import Given
from nemo_chameleon.data.indexed import IndexedDomain
from nemo_chameleon.data.indexed_part import IndexedPart
from nemo_chameleon.data.prepare import prepare
from nemo_chameleon.data.readers import (
    MalformedError,
    document_of,
    files_of,
    find_files,
    read_lines,
)
from nemo_chameleon.data.sft.examples import parse
from nemo_chameleon.data.sft.templates import ChatTemplate
from nemo_chameleon.data.tokenizer import train_tokenizer
from nemo_chameleon.method.embeddings import HeaviestTokens, ShardedEmbedding
from nemo_chameleon.mixture import Mixture
from nemo_chameleon.mixture.embeddings_file import load_embeddings, save_embeddings
from nemo_chameleon.mixture.formats import FORMATS, export_mixture, import_mixture
from nemo_chameleon.mixture.tables import diff_mixtures, show_mixture
from nemo_chameleon.models import tracker, whole
from nemo_chameleon.train.report import read_result
from nemo_chameleon.utils import manifest
from nemo_chameleon.utils.errors import UserError

ROOT = Path(__file__).parents[2]
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}{{ call | tojson }}{% endfor %}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def targets_in(folder: Path) -> dict[str, Target]:
    """Make the targets, by name; each has files of its own in `folder`, as they run together."""
    made: list[Target] = []
    for make in (_mixtures, _configurations, _indices, _texts, _examples, _runs, _checkpoints):
        own = folder / make.__name__
        own.mkdir()
        made += make(own)
    return {target.name: target for target in made}


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _through(path: Path, use: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Return a function that writes an input to a file and reads that."""

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return use(path)

    return read


def _mixture() -> Mixture:
    names = {"wiki": 0.25, "code": 0.75}
    facts: dict[str, dict[str, Any]] = {
        name: {"path": f"/d/{name}", "tokens": 1000, "documents": 9, "fingerprint": "ab"}
        | {"samples": 8, "score": 1.5, "heaviest_share": 0.02, "heaviest_token": "the"}
        for name in names
    }
    facts["code"] |= {"path": ["/d/a", "/d/b"], "part_tokens": [400, 600]}
    return Mixture(
        names,
        "pretrain",
        facts,
        {"name": "chameleon", "layers": {"1": names, "2": names}, "caveats": ["few windows"]}
        | {"intervals": "windows", "ridge": 0.1},
        {"averaged": [{"checkpoint": "/p", "tokens": 9, "drift": 0.1, "iterations": 5}]},
        {name: [weight / 2, weight * 1.1] for name, weight in names.items()},
        {"time": "2026-01-01"},
    )


def _mixtures(folder: Path) -> Iterator[Target]:
    known = _mixture()

    def use(path: Path) -> None:
        mixture = Mixture.load(path)
        show_mixture(mixture)
        diff_mixtures(known, mixture)
        assert Mixture.from_json(mixture.to_json()) == mixture
        for form in FORMATS:
            export_mixture(mixture, form)

    static = Mixture.static({"a": 1, "b": 3})
    static = replace(
        static, domains={name: {"path": name, "tokens": 9, "documents": 2} for name in "ab"}
    )
    seeds = [known.to_json().encode(), static.to_json().encode()]
    yield Target("mixture", seeds, _through(folder / "m.json", use), quick=True)

    lists = {
        "megatron": b"0.3 /d/a 0.7 /d/b-1\n",
        "megatron-per-split": _json({"train": ["3", "/d/a", "7", "/d/b"], "valid": ["/d/c"]}),
        "nemo": b"data:\n  paths: [30, /d/a, 70, /d/b]\n  data_prefix: null\n",
        "bridge": b"dataset:\n  blend: [[/d/a, /d/b], [0.3, 0.7]]\n",
        "hf": _json(
            {"probabilities": [0.3, 0.7], "names": ["a", "b"], "tokens_per_document": [9, 5]}
        ),
        "csv": b'domain,weight,path,tokens\na,0.3,/d/a,"1,000"\nb,0.7,/d/b,5\n',
        "ratios": b"run,name,index,a,b\nx,y,1,0.3,0.7\n",
        "json": _json(
            [{"domain": "a", "weight": 0.3, "path": "/d/a"}, {"domain": "b", "weight": 1}]
        ),
    }
    for form in FORMATS:
        seeds = [lists[form], export_mixture(known, form).encode()]

        def read(data: bytes, form: str = form) -> None:
            try:
                text = data.decode("utf-8-sig")
            except UnicodeDecodeError as error:  # the command says so
                raise UserError("not UTF-8") from error
            mixture = import_mixture(text, form)
            show_mixture(mixture)
            Mixture.from_json(mixture.to_json())
            mixture.save(folder / f"{form}.imported.json")

        yield Target(f"import-{form}", seeds, read, quick=True)

    shards = [
        ShardedEmbedding(
            np.ones((3, 4), np.float32), np.full(3, 9), HeaviestTokens(0.1, 2.0, 7, 3)
        ),
        ShardedEmbedding(np.ones((2, 4), np.float32), np.full(2, 5), None),
    ]
    save_embeddings(folder / "e.safetensors", [{"a": shards[0], "b": shards[1]}] * 2)
    seed = (folder / "e.safetensors").read_bytes()
    read_them = _through(folder / "e.safetensors", load_embeddings)
    yield Target("embeddings", [seed], read_them, quick=True)


def _configurations(folder: Path) -> Iterator[Target]:
    demo = ROOT / "conf" / "demo.yaml"

    def use(path: Path) -> None:
        check(load_config(path), 1)

    text = demo.read_bytes()
    tree = _json(yaml.safe_load(text))
    yield Target("config", [text, tree], _through(folder / "c.yaml", use))

    def override(data: bytes) -> None:
        settings = data.decode(errors="surrogateescape").split("\n")
        check(load_config(demo, settings), 1)

    lines = (
        b"train.train_iters=50\ndata.domains.a.path=[/d/a,/d/b]\nmodel.hidden_size=${model.seq_length}",
        b"optimizer.lr=1e-3\ndata.pin={a: 0.5}\nchameleon.layer=2\noutput='a b'",
        b"data.domains.'a.b'.path=/d/x\ncheckpoint.resume=auto\nproxy.load=null",
    )
    yield Target("overrides", list(lines), override)


def _index(lengths: list[int], documents: list[int], itemsize: int, code: int) -> bytes:
    ends = np.cumsum([0, *lengths]) * itemsize
    header = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, len(lengths), len(documents))
    pointers = ends[:-1].astype(np.int64)
    tables = np.array(lengths, np.int32), pointers, np.array(documents, np.int64)
    return header + b"".join(table.tobytes() for table in tables)


def _open_index(prefix: Path) -> None:
    """Open a dataset; what is accepted, Megatron must read to the end."""
    part = IndexedPart.open(
        Given(str(prefix)), split="9,1,0", vocab_size=500, tokenizer=None, whole=True
    )
    domain = IndexedDomain("x", (part,), part.fingerprint)
    if part.tokens:
        domain.window(0, 8, 0)
        domain.window(1, 8, 0, cross_documents=True)
    dataset = IndexedDataset(str(prefix))
    assert sum(len(dataset[i]) for i in range(len(dataset))) * part.token_bytes == len(
        prefix.with_suffix(".bin").read_bytes()
    )


def _indices(folder: Path) -> Iterator[Target]:
    lengths = [5, 0, 7, 3, 9, 1, 4, 4, 6, 8]
    tokens = np.arange(sum(lengths)) + 3
    index = _index(lengths, list(range(11)), 2, 8)
    prefixes = folder / "idx", folder / "bin"

    def idx(data: bytes) -> None:
        prefixes[0].with_suffix(".bin").write_bytes(tokens.astype(np.uint16).tobytes())
        prefixes[0].with_suffix(".idx").write_bytes(data)
        _open_index(prefixes[0])

    yield Target("idx", [index, _index(lengths, [0, 3, 3, 10], 2, 8)], idx, quick=True)

    def bin_(data: bytes) -> None:
        prefixes[1].with_suffix(".idx").write_bytes(_index(lengths, [0, 10], 4, 4))
        prefixes[1].with_suffix(".bin").write_bytes(data)
        _open_index(prefixes[1])

    yield Target("bin", [tokens.astype(np.int32).tobytes()], bin_, quick=True)


def _texts(folder: Path) -> Iterator[Target]:
    rows = [{"text": f"some words {i}", "id": i, "meta": {"a": [i, None]}} for i in range(5)]
    lines = b"".join(_json(row) + b"\n" for row in rows)
    table = arrow.Table.from_pylist(rows)
    parquet.write_table(table, folder / "t.parquet")
    for ending, new in (("arrow", arrow.ipc.new_file), ("stream", arrow.ipc.new_stream)):
        with new(str(folder / f"t.{ending}"), table.schema) as writer:
            writer.write_table(table)
    tables = [(folder / f"t.{end}").read_bytes() for end in ("parquet", "arrow", "stream")]
    plain = [lines, json.dumps(rows, indent=1).encode(), b"Only text.\nIn two lines.\n"]
    packed = [gzip.compress(lines), zstandard.compress(lines), bz2.compress(lines)]
    packed.append(lzma.compress(lines))
    endings = ("", ".jsonl", ".json", ".txt", ".gz", ".parquet")

    for kind, seeds in {"text": plain, "compressed": packed, "tables": tables}.items():

        def read(data: bytes, kind: str = kind) -> None:
            path = folder / f"{kind}{endings[zlib.crc32(data) % len(endings)]}"
            path.write_bytes(data)
            files, _ = files_of(find_files([str(path)]))
            for line in read_lines(files, key="text"):
                document_of(line, files, "text")

        yield Target(f"readers-{kind}", seeds, read, quick=kind == "text")

    tokenizer = folder / "tokenizer.json"
    train_tokenizer([str(row["text"]) for row in rows] * 3, 300).save(str(tokenizer))
    prefix = folder / "out"

    def end_to_end(data: bytes) -> None:
        for path in folder.glob("out.*"):
            path.unlink()
        path = folder / f"input{endings[zlib.crc32(data) % len(endings)]}"
        path.write_bytes(data)
        try:
            prepare([str(path)], str(tokenizer), prefix, workers=1)
        finally:
            path.unlink()
        _open_index(prefix)

    yield Target("prepare", [*plain, *packed, *tables], end_to_end)


def _examples(folder: Path) -> Iterator[Target]:
    del folder
    template = ChatTemplate(TEMPLATE, {})
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    asked = {"role": "user", "content": "2+2?"}
    said = {"role": "assistant", "content": "4", "weight": 1}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    seeds: list[dict[str, Any]] = [
        {"messages": [{"role": "system", "content": "Be brief."}, asked, said], "id": 7},
        {"messages": [asked, {"role": "assistant", "tool_calls": [call]}], "tools": [tool]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, said]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"instruction": "Add.", "input": "2 2", "output": "4", "history": [["a", "b"]]},
        {"prompt": "2+2=", "completion": "4"},
        {"prompt": [asked], "completion": [said]},
        {"text": "Only text."},
        {"input": "2+2?", "output": "4", "topic": "sums"},
    ]

    def read(data: bytes) -> None:
        parse(data, template)

    yield Target("examples", [_json(seed) for seed in seeds], read, (UserError, MalformedError))


def _runs(folder: Path) -> Iterator[Target]:
    score = {"loss": 2.0, "perplexity": 7.4}
    domain = {"weight": 0.5, "tokens": 900, "samples": 8, "epochs": 0.1, **score}
    result = {
        "run": "uniform",
        "mixture": "uniform",
        "parameters": 1000,
        "iterations": 5,
        "tokens": 400,
        "loss": 2.5,
        "seconds": 1.5,
        "domains": {"a": domain, "b": domain | {"answer_tokens": 5}},
        "macro": score,
        "validation": {"c": score},
        "validation macro": score,
    }
    read = _through(folder / "result.json", lambda path: read_result(path.parent))
    yield Target("result", [_json(result)], read, quick=True)

    run = folder / "run"
    for number in (5, 12):
        (run / f"iter_{number:07d}").mkdir(parents=True)

    def find(path: Path) -> None:
        tracker.tracked(path.parent)
        for found in tracker.saved(path.parent):
            tracker.iteration_of(found)

    read = _through(run / "latest_checkpointed_iteration.txt", find)
    yield Target("tracker", [b"12\n", b"release\n", b"5"], read, quick=True)

    state = {
        "identity": {"seed": 1, "model": {"num_layers": 2}},
        "iteration": 5,
        "samples": {"a": 9},
    }
    read = _through(
        run / "iter_0000005" / "state.json", lambda path: tracker.read_state(path.parent)
    )
    yield Target("state", [_json(state)], read, quick=True)

    (folder / "one").write_bytes(b"some bytes")

    def use(path: Path) -> None:
        if (entries := manifest.read(path.parent)) is not None:
            manifest.fault_of(path.parent, entries)

    manifest.write(folder, manifest.entries_of(folder, ["one"]))
    seed = (folder / manifest.NAME).read_bytes()
    yield Target(
        "manifest", [seed], _through(folder / manifest.NAME, use), (ValueError, OSError), quick=True
    )


def _checkpoints(folder: Path) -> Iterator[Target]:
    saved = {"model.weight": torch.zeros(4, 3), "model.bias": torch.ones(3, dtype=torch.bfloat16)}
    state_dict_saver.save({**saved, "step": 5}, checkpoint_id=folder, no_dist=True)
    (folder / "metadata.json").write_text("{}")
    common = {"args": {"seed": 1}, "iteration": 5, "betas": (0.9, 0.99), "scale": torch.ones(2)}
    torch.save(common, folder / "common.pt")
    for name in (".metadata", "common.pt"):
        own = shutil.copytree(folder, folder.with_name(f"of{name}"))
        path = own / name
        seed = path.read_bytes()

        def read(data: bytes, path: Path = path, seed: bytes = seed) -> None:
            path.write_bytes(data)
            try:
                # It returns what is wrong, and raises where code would run.
                if (fault := whole.fault_of(path.parent)) is not None:
                    raise UserError(fault)
            finally:
                path.write_bytes(seed)

        yield Target(name.strip("."), [seed], read)
