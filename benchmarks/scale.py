"""Measure what a mixture costs at scale, and estimate the costs of two large runs.

    python -m benchmarks.scale [--quick]

The script measures the default proxy's training and embedding; Megatron's indices of 22 domains and
a hundred million samples, and its blend of more domains; the seconds and, where strace is
installed, the file system calls to open a domain, here and in Megatron, with its default settings
and with those that whole indices allow; and the scores and files of ten thousand domains. It prints
these rates, the costs of docs/scale.md's two runs at these rates and, as its last line,
one JSON object.
"""

import argparse
import json
import logging
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets import helpers

from benchmarks.embedding import matmul_rate
from benchmarks.mixtures import cost
from benchmarks.provider import seconds
from nemo_chameleon import Mixture, provider
from nemo_chameleon.config import load_mixture_config
from nemo_chameleon.config.data import DataConfig, DomainConfig
from nemo_chameleon.config.schema import ChameleonConfig, Config
from nemo_chameleon.data import blend as blending
from nemo_chameleon.data.blend import training_dataset
from nemo_chameleon.data.indexed import open_indexed
from nemo_chameleon.data.kinds import kind_of
from nemo_chameleon.distributed.layout import model_parallel
from nemo_chameleon.distributed.processes import process_group
from nemo_chameleon.embedding import embed, middle_layer
from nemo_chameleon.embedding.megatron import megatron_extractor
from nemo_chameleon.embedding.sampler import default_batch
from nemo_chameleon.method.embeddings import SHARDS, ShardedEmbedding
from nemo_chameleon.method.weights import PRESETS
from nemo_chameleon.mixture import compute
from nemo_chameleon.mixture.embeddings_file import save_embeddings
from nemo_chameleon.provider.runs import proxy_run
from nemo_chameleon.train import trainer

LENGTH, DOCUMENT, VOCABULARY, WIDTH = 8192, 2048, 32_000, 768
FILES = 6  # that Megatron keeps open for a domain: its .bin, and one for each file that it maps


def write_domain(prefix: Path, documents: int) -> None:
    """Write a Megatron dataset with documents of one length, and tokens in a sparse file."""
    lengths = np.full(documents, DOCUMENT, dtype="<i4")
    pointers = np.arange(documents, dtype="<i8") * DOCUMENT * 2
    with prefix.with_suffix(".idx").open("wb") as stream:
        stream.write(b"MMIDIDX\x00\x00" + np.array([1], "<u8").tobytes() + b"\x08")  # uint16
        stream.write(np.array([documents, documents + 1], "<u8").tobytes())
        for part in (lengths, pointers, np.arange(documents + 1, dtype="<i8")):
            part.tofile(stream)
    with prefix.with_suffix(".bin").open("wb") as stream:
        stream.truncate(documents * DOCUMENT * 2)


def write_domains(folder: Path, count: int, documents: int) -> DataConfig:
    """Write a number of domains, each of another size: equal ones count as the same data."""
    folder.mkdir()
    data = DataConfig(vocab_size=VOCABULARY, split="1,0,0", cache=str(folder / "cache"))
    for number in range(count):
        prefix = folder / f"domain{number:05}"
        write_domain(prefix, documents + number)
        data.domains[prefix.name] = DomainConfig(path=str(prefix))
    return data


def indices(folder: Path, samples: int, count: int = 22) -> dict[str, float]:
    """Time Megatron's indices over one pass of each domain, as the first rank builds them."""
    data = write_domains(folder, count, samples * LENGTH // DOCUMENT // count + 1)
    domains = kind_of(data).open_domains(data, LENGTH)
    mixture = Mixture.uniform(domains)
    sizes = {"samples": samples, "seq_length": LENGTH, "seed": 1}

    def build() -> None:
        training_dataset(data, domains, mixture, **sizes)

    first, again = seconds(build), seconds(build)
    cache = sum(path.stat().st_size for path in Path(data.cache).rglob("*") if path.is_file())
    shutil.rmtree(folder)
    return {
        "samples": samples,
        "domains": count,
        "seconds": first,
        "seconds_from_cache": again,
        "nanoseconds_a_sample": first / samples * 1e9,
        "bytes_a_sample": cache / samples,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def blend(samples: int, count: int) -> dict[str, float]:
    """Time Megatron's order of the domains, which looks at every domain for every sample."""
    weights = np.random.default_rng(0).dirichlet(np.full(count, 2.0))
    of_domain, of_sample = np.zeros(samples, np.int16), np.zeros(samples, np.int64)
    arguments = (of_domain, of_sample, weights, count, samples, False)
    taken = seconds(lambda: helpers.build_blending_indices(*arguments))
    return {"seconds": taken, "nanoseconds_a_sample_and_domain": taken / samples / count * 1e9}


def opening(folder: Path, count: int) -> dict[str, Any]:
    """Measure the opening of domains, in seconds and, with strace, in file system calls.

    This package checks and fingerprints a domain once per node.
    """
    data = write_domains(folder, count, 1000)
    taken = seconds(lambda: open_indexed(data.domains, data.split, VOCABULARY))
    found: dict[str, Any] = {"domains": count, "milliseconds_a_domain": taken / count * 1e3}
    if shutil.which("strace"):
        found["calls_a_domain"] = by_domain({n: counted(folder, "open", n)[0] for n in (1, count)})
    shutil.rmtree(folder)
    return found


def loading(folder: Path, counts: Sequence[int]) -> dict[str, Any]:
    """Count the file system calls with which Megatron opens domains whose indices are in the cache.

    Of two ranks the second one does what every rank does; the first one also verifies the indices.

    Args:
        folder: a folder to make.
        counts: numbers of domains; the limit of open files may allow fewer.

    Returns:
        The calls of a domain, without those of opening it in this package, by number of domains.
        They are those of the second rank with Megatron's default settings, those with the settings
        for whole indices, what the first rank does in addition, and what the first sample of a
        domain takes. Nothing if strace is not installed.
    """
    if not shutil.which("strace"):
        return {}
    most = (resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 1000) // FILES
    wanted = sorted({min(count, most) for count in counts})
    write_domains(folder, wanted[-1], 10)
    ranks: dict[str, dict[int, list[Counter[str]]]] = {}
    for action in ("build", "open", "default", "load", "draw"):
        ranks[action] = {many: counted(folder, action, many, ranks=2) for many in (1, *wanted)}
    shutil.rmtree(folder)

    def more(of: tuple[str, int], than: tuple[str, int]) -> dict[int, dict[str, float]]:
        (action, rank), (before, other) = of, than
        extra = {
            many: ranks[action][many][rank] - ranks[before][many][other] for many in (1, *wanted)
        }
        return {many: by_domain({1: extra[1], many: extra[many]}) for many in wanted}

    return {
        "default": more(("default", 1), ("open", 1)),
        "whole": more(("load", 1), ("open", 1)),
        "first_rank": more(("load", 0), ("load", 1)),
        "first_sample": more(("draw", 1), ("load", 1)),
    }


def by_domain(calls: dict[int, Counter[str]]) -> dict[str, float]:
    """Return the calls that each further domain adds, without those that are negligible."""
    few, many = sorted(calls)
    more = {name: (calls[many][name] - calls[few][name]) / (many - few) for name in calls[many]}
    return {name: calls for name, calls in more.items() if calls >= 0.5}


def counted(folder: Path, action: str, count: int, ranks: int = 1) -> list[Counter[str]]:
    """Count the system calls of each rank, by name, on the files of a number of domains."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    logs = [folder / f"calls{rank}" for rank in range(ranks)]
    processes = []
    for rank, log in enumerate(logs):
        command = ["strace", "-f", "--seccomp-bpf", "-qq", "-y", "-s0", "-o", str(log)]
        command += ["-e", "trace=openat,%stat,%lstat,%fstat,read,pread64"]
        command += [sys.executable, "-m", "benchmarks.scale", "--only", action, str(folder)]
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks}
        environment = {**os.environ, **place, **{name: str(n) for name, n in numbers.items()}}
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        processes.append(subprocess.Popen([*command, str(count)], env=environment, **output))
    said = [process.communicate()[0] for process in processes]
    for process, text in zip(processes, said, strict=True):
        if process.returncode:
            raise RuntimeError(text.decode())
    return [calls_in(log, f"{folder}/") for log in logs]


def calls_in(log: Path, folder: str) -> Counter[str]:
    """Count the calls in a log of strace that name a file of a folder, or have it open."""
    calls: Counter[str] = Counter()
    with log.open() as lines:
        for line in lines:
            name, _, arguments = line.partition(" ")[2].strip().partition("(")
            if folder in arguments and "resumed>" not in name:
                calls[name] += 1
    return calls


def only(action: str, folder: Path, count: int) -> None:
    """Open a number of domains, and do with them what the action says.

    "open" does nothing more; "build" and "load" build their datasets, which are in the cache the
    second time; "default" does so with Megatron's default settings; and "draw" also draws the first
    sample of each.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if action == "default":
        blending.loading_settings = lambda *_: {}
    paths = sorted(folder.glob("*.idx"))[:count]
    wanted = {path.stem: DomainConfig(path=str(path.with_suffix(""))) for path in paths}
    data = DataConfig(domains=wanted, vocab_size=VOCABULARY, split="1,0,0")
    data.cache = str(folder / "cache")
    with process_group():
        domains = open_indexed(data.domains, data.split, VOCABULARY)
        if action != "open":
            sizes = {"samples": 10 * count, "seq_length": LENGTH, "seed": 1}
            drawn = training_dataset(data, domains, Mixture.uniform(domains), **sizes)
        if action == "draw":
            for place in np.unique(drawn.dataset_index, return_index=True)[1]:
                drawn[place]


def rates(folder: Path, quick: bool) -> dict[str, Any]:
    """Measure the tokens per second of one device that trains and embeds with the default proxy."""
    cuda = torch.cuda.is_available()
    iterations, sequences, windows = (20, 128, 4096) if cuda else (3, 8, 32)
    data = write_domains(folder, 2, 10_000)
    settings = [f"data.domains.{name}.path={domain.path}" for name, domain in data.domains.items()]
    settings += [f"output={folder}/out", "data.vocab_size=50257", "data.split=1,0,0"]
    settings += ["proxy.train.eval_iters=0", "chameleon.source=proxy"]
    settings += [f"proxy.train.global_batch_size={sequences}"]
    if quick:
        settings += ["proxy.model.num_layers=2", "proxy.model.hidden_size=48"]
    config = load_mixture_config(None, settings)
    model, vocabulary = config.proxy.model, 50257
    length, layer = model.seq_length, middle_layer(model.num_layers)
    proxy = proxy_run(config, provider.prepare_mixture(config).domains)
    with model_parallel(config.proxy.parallel, 1):
        run = trainer.Trainer(proxy)
        batches = run._batches()
        run.step(batches)

        def train() -> None:
            for _ in range(iterations):
                run.step(batches)
            run.meter.reduce()  # waits for the device

        training_rate = iterations * sequences * length / seconds(train)
        first = next(iter(proxy.domains.items()))
        with megatron_extractor(run.model) as extractor:
            sizes = {"samples": windows, "sample_length": length, "seed": 1}

            def embed_one() -> None:
                batch = default_batch()
                embed(extractor, dict([first]), layers=(layer,), micro_batch_size=batch, **sizes)

            embed_one()
            embedding_rate = windows * length / seconds(embed_one)
    shutil.rmtree(folder)
    matmul = matmul_rate()
    to_train, to_embed = cost.training(model, vocabulary), cost.forward(model, vocabulary, layer)
    return {
        "device": torch.cuda.get_device_name() if cuda else "one CPU core",
        "training_tokens_per_second": training_rate,
        "training_operations_a_token": to_train,
        "training_share_of_matmul_rate": training_rate * to_train / matmul,
        "embedding_tokens_per_second": embedding_rate,
        "embedding_operations_a_token": to_embed,
        "embedding_share_of_matmul_rate": embedding_rate * to_embed / matmul,
    }


def metadata(calls: dict[str, float]) -> float:
    """Return the calls without those that read."""
    return sum(number for name, number in calls.items() if "read" not in name)


def reckoned(figures: dict[str, Any], count: int, tokens: float) -> dict[str, float]:
    """Estimate a run's costs from the measured rates.

    Args:
        figures: what was measured, by name.
        count: number of domains.
        tokens: tokens that the base model is trained on.
    """
    default = Config().proxy.train
    of_proxy = default.train_iters * default.global_batch_size * 512
    of_windows = count * ChameleonConfig().samples * 512
    rate, opening, files = figures["rates"], figures["opening"], figures["scores"]
    blends = {22: "blend of 22 domains", 10_000: "blend of 10,000 domains"}
    blend_rate = figures[blends[count]]["nanoseconds_a_sample_and_domain"] * count
    own = figures["indices"]["nanoseconds_a_sample"]
    own -= figures[blends[22]]["nanoseconds_a_sample_and_domain"] * 22
    samples = tokens / LENGTH
    in_megatron = {
        what: metadata(found[max(found)]) * count for what, found in figures["loading"].items()
    }
    return {
        "domains": count,
        "tokens": tokens,
        "samples": samples,
        "proxy_operations": of_proxy * rate["training_operations_a_token"],
        "proxy_device_hours": of_proxy / rate["training_tokens_per_second"] / 3600,
        "embedding_operations": of_windows * rate["embedding_operations_a_token"],
        "embedding_device_hours": of_windows / rate["embedding_tokens_per_second"] / 3600,
        "mixture_bytes": files["bytes_of_json"] / files["domains"] * count,
        "embeddings_bytes": files["bytes_of_safetensors"] / files["domains"] * count,
        "opening_seconds_a_node": opening["milliseconds_a_domain"] * count / 1e3,
        "metadata_calls_a_node": metadata(opening.get("calls_a_domain", {})) * count,
        "megatrons_metadata_calls": in_megatron,
        "index_hours": (own + blend_rate) * samples / 1e9 / 3600,
        "blend_hours": blend_rate * samples / 1e9 / 3600,
        "index_bytes": figures["indices"]["bytes_a_sample"] * samples,
    }


def scores(folder: Path, count: int) -> dict[str, float]:
    """Time the way from embeddings to files: scores, weights, their intervals, and both files."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    embeddings = {}
    for number in range(count):
        means = generator.normal(size=WIDTH) + 0.3 * generator.normal(size=(SHARDS, WIDTH))
        shards = ShardedEmbedding(means.astype(np.float32), np.full(SHARDS, 2**15))
        embeddings[f"domain{number:05}"] = shards
    facts = {
        name: {"path": f"/data/{name}", "tokens": 10**10, "samples": 2048} for name in embeddings
    }
    arguments: dict[str, Any] = {"objective": "pretrain", "preset": PRESETS["calibrated"]}
    made: list[Mixture] = []
    taken = seconds(
        lambda: made.append(compute.mixture_from_embeddings([embeddings], facts, **arguments))
    )
    made[0].save(folder / "mixture.json")
    save_embeddings(folder / "mixture.safetensors", [embeddings])
    sizes = {path.suffix: path.stat().st_size for path in folder.iterdir()}
    reading = seconds(lambda: Mixture.load(folder / "mixture.json"))
    shutil.rmtree(folder)
    return {
        "domains": count,
        "seconds": taken,
        "seconds_to_read": reading,
        "bytes_of_json": sizes[".json"],
        "bytes_of_safetensors": sizes[".safetensors"],
    }


def main() -> None:
    """Measure, and print the rates, the costs and the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="use small sizes; takes three minutes")
    parser.add_argument("--only", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        action, folder, count = arguments.only
        only(action, Path(folder), int(count))
        return
    quick = arguments.quick
    logging.disable(logging.WARNING)
    figures: dict[str, Any] = {"benchmark": "scale", "quick": quick}

    def add(name: str, found: dict[str, Any]) -> None:
        figures[name] = found
        print(name, json.dumps(found, indent=2), flush=True)

    with tempfile.TemporaryDirectory() as name, process_group():
        folder = Path(name)
        add("opening", opening(folder / "opening", 50 if quick else 1000))
        add("loading", loading(folder / "loading", (22, 50) if quick else (22, 1000, 10_000)))
        for samples, count in ((10**6, 22), (10**6, 1000), (10**5, 10_000)):
            add(f"blend of {count:,} domains", blend(samples // (10 if quick else 1), count))
        add("scores", scores(folder / "scores", 200 if quick else 10_000))
        add("indices", indices(folder / "indices", 10**5 if quick else 10**8))
        add("rates", rates(folder / "rates", quick))
    add("22 domains, 15 T tokens", reckoned(figures, 22, 15e12))
    add("10,000 domains, 100 T tokens", reckoned(figures, 10_000, 100e12))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
