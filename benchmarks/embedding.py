"""Compare our embeddings of a domain with the authors' way, on the same weights and windows.

    python -m benchmarks.embedding [--quick]

The authors' way uses the GPT-2 of transformers, with 82M parameters and output_hidden_states=True.
It decodes windows to text and encodes them again, 64 at a time, and runs all layers and the output
layer. Ours reads tokens from the memory-mapped file and stops after the middle layer; on CUDA it
computes in bf16. Both are timed in the same run, each after a warm-up. Raw states are compared with
theirs; what normalising them costs is measured in pairs. The script prints a table and, as its last
line, one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers

from benchmarks.gpt2 import megatron_state
from nemo_chameleon.config.schema import ModelConfig, RunConfig
from nemo_chameleon.data.indexed import IndexedDomain
from nemo_chameleon.data.tokenize import write_dataset
from nemo_chameleon.data.tokenizer import load_tokenizer, train_tokenizer
from nemo_chameleon.distributed.device import current_device, dtype_of
from nemo_chameleon.distributed.layout import model_parallel
from nemo_chameleon.distributed.processes import process_group
from nemo_chameleon.embedding import embed, middle_layer
from nemo_chameleon.embedding.megatron import megatron_extractor
from nemo_chameleon.embedding.sampler import default_batch
from nemo_chameleon.models.gpt import build_gpt, unwrap
from nemo_chameleon.utils.ranks import is_first_rank

SEED = 1


def data(folder: Path) -> None:
    """Write a tokenizer and one domain: the Python files of the standard library."""
    files = sorted(Path(argparse.__file__).parent.glob("*.py"))
    texts = [path.read_text(errors="replace") for path in files]
    tokenizer = train_tokenizer(texts, 8000)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_dataset(texts, tokenizer, folder / "stdlib")


def gpt2(length: int, quick: bool) -> transformers.GPT2LMHeadModel:
    """Build a GPT-2 of 82M parameters, or a small one if `quick`, with random weights."""
    torch.manual_seed(0)
    width, heads = (64, 4) if quick else (768, 12)
    size = {"n_embd": width, "n_layer": 6, "n_head": heads, "n_positions": length}
    settings = transformers.GPT2Config(
        vocab_size=8192 if quick else 50257, activation_function="gelu", **size
    )
    return transformers.GPT2LMHeadModel(settings).eval()


def theirs(
    lm: transformers.GPT2LMHeadModel, domain: IndexedDomain, tokenizer, samples: int, length: int
):
    """Compute the mean hidden state (h,) the authors' way.

    Padding would count in the mean, but these windows have none.
    """
    layer, total, count = middle_layer(6), 0.0, 0
    for start in range(0, samples, 64):
        windows = [
            domain.window(i, length, SEED).tokens for i in range(start, min(start + 64, samples))
        ]
        texts = [tokenizer.decode(window.tolist()) for window in windows]
        batch = torch.zeros(len(texts), length, dtype=torch.int64)
        for row, encoded in enumerate(tokenizer.encode_batch(texts)):
            ids = torch.tensor(encoded.ids[:length])
            batch[row, : len(ids)] = ids
        with torch.no_grad():
            states = lm(batch.to(lm.device), output_hidden_states=True).hidden_states[layer]
        total, count = total + states.double().sum((0, 1)), count + batch.numel()
    return (total / count).cpu().numpy()


def timed(compute: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """Return a computation's result and its seconds, measured after a first run."""
    compute()
    started = time.perf_counter()
    result = compute()
    return result, time.perf_counter() - started


def matmul_rate() -> float:
    """Return the operations per second of dense products on this device: the best of two sizes."""
    rates = []
    for size in (2048, 4096) if torch.cuda.is_available() else (512, 1024):
        dtype = dtype_of("auto")
        a = torch.randn(size, size, dtype=dtype, device=current_device())
        repeats = 50 if torch.cuda.is_available() else 5

        def products(a: torch.Tensor = a, repeats: int = repeats) -> np.ndarray:
            for _ in range(repeats):
                product = a @ a
            return product[:1, :1].float().cpu().numpy()

        rates.append(2 * size**3 * repeats / timed(products)[1])
    return max(rates)


def measure_ours(
    folder: Path, lm, samples: int, length: int, pairs: int = 0
) -> tuple[np.ndarray, float, list[float]]:
    """Return our raw embedding (h,), its seconds, and the seconds of normalising over raw, by pair.

    Every process of the group calls this.
    """
    settings, run = lm.config, RunConfig(model=ModelConfig())
    run.model.num_layers, run.model.hidden_size = settings.n_layer, settings.n_embd
    run.model.num_attention_heads, run.model.seq_length = settings.n_head, length
    run.model.position_embedding_type, run.model.normalization = "learned_absolute", "LayerNorm"
    run.model.gated_linear_unit, run.model.add_bias_linear = False, True
    run.model.share_embeddings_and_output_weights = True
    domain = IndexedDomain.open("stdlib", str(folder / "stdlib"))
    with model_parallel(run.parallel, 0):
        gpt = build_gpt(run, settings.vocab_size, for_training=False)
        state = megatron_state(lm)
        table = unwrap(gpt).embedding.word_embeddings.weight
        padded = torch.zeros(table.shape)
        padded[: settings.vocab_size] = state["embedding.word_embeddings.weight"]
        state["embedding.word_embeddings.weight"] = padded
        unwrap(gpt).load_state_dict(state, strict=False)
        with megatron_extractor(gpt) as extractor:

            def compute(normalize_states: bool = False) -> np.ndarray:
                (embeddings,) = embed(
                    extractor,
                    {"stdlib": domain},
                    layers=(middle_layer(settings.n_layer),),
                    samples=samples,
                    sample_length=length,
                    micro_batch_size=default_batch(),
                    seed=SEED,
                    cross_documents=False,
                    normalize_states=normalize_states,
                )
                return embeddings["stdlib"].embedding

            embedding, seconds = timed(compute)
            ratios = []
            for pair in range(pairs):
                both = {}
                for normalized in (False, True) if pair % 2 else (True, False):
                    started = time.perf_counter()
                    compute(normalized)
                    both[normalized] = time.perf_counter() - started
                ratios.append(both[True] / both[False])
            return embedding, seconds, ratios


def in_processes(processes: int, arguments: list[str]) -> float:
    """Return our tokens per second with a number of processes that have one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    command += ["--standalone", "-m", "benchmarks.embedding", *arguments]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=one_thread)
    return float(json.loads(done.stdout.splitlines()[-1])["ours_tokens_per_second"])


def main() -> None:
    """Measure, and print the table and the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="use a small model; takes seconds")
    parser.add_argument("--ours-in", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    cuda, quick = torch.cuda.is_available(), arguments.quick
    length = 64 if quick else 512
    samples = 64 if quick else 4096 if cuda else 64
    lm = gpt2(length, quick)
    if arguments.ours_in:  # this is one of several processes, see in_processes
        with process_group():
            _, seconds, _ = measure_ours(Path(arguments.ours_in), lm, samples, length)
            if is_first_rank():
                print(json.dumps({"ours_tokens_per_second": samples * length / seconds}))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data(folder)
        domain = IndexedDomain.open("stdlib", str(folder / "stdlib"))
        tokens = sum(len(domain.window(i, length, SEED).tokens) for i in range(samples))
        with process_group():
            ours, seconds, ratios = measure_ours(folder, lm, samples, length, pairs=10)
            rate = matmul_rate()
        tokenizer = load_tokenizer(str(folder / "tokenizer.json"))
        lm = lm.to("cuda" if cuda else "cpu")
        their, their_seconds = timed(lambda: theirs(lm, domain, tokenizer, samples, length))
        width, layers = lm.config.n_embd, middle_layer(6)
        operations = layers * (24 * width**2 + 4 * length * width)  # per token, with attention
        figures = {
            "benchmark": "embedding",
            "quick": quick,
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "tokens": tokens,
            "ours_tokens_per_second": tokens / seconds,
            "theirs_tokens_per_second": tokens / their_seconds,
            "times": their_seconds / seconds,
            "share_of_matmul_rate": operations * tokens / seconds / rate,
            "normalised_over_raw": float(np.median(ratios)),
            "difference": float(np.abs(ours - their).max() / np.abs(their).max()),
        }
        if not cuda:
            own = ["--ours-in", name, *(["--quick"] if quick else [])]
            figures["two_processes"] = in_processes(2, own) / in_processes(1, own)
    for key, value in figures.items():
        print(f"{key:26} {value:,.3g}" if isinstance(value, float) else f"{key:26} {value}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
