"""IndexedDomain embeddings: ours against the authors' way, on the same weights and windows.

    python -m benchmarks.embedding [--quick]

The authors' way is transformers' GPT-2 of 82M parameters with output_hidden_states=True: windows
are decoded to text and encoded again, 64 at once, and go through all layers and the output layer.
Ours takes tokens from the memory-mapped file and stops after the middle layer, in bf16 on CUDA.
Prints a table and, as its last line, one JSON object. Compared in one run, each after a warm-up.
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
    """A tokenizer and one domain: the Python files of the standard library."""
    files = sorted(Path(argparse.__file__).parent.glob("*.py"))
    texts = [path.read_text(errors="replace") for path in files]
    tokenizer = train_tokenizer(texts, 8000)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_dataset(texts, tokenizer, folder / "stdlib")


def gpt2(length: int, quick: bool) -> transformers.GPT2LMHeadModel:
    """82M parameters with GPT-2's vocabulary, or a small one; random weights."""
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
    """The mean hidden state (h,) the authors' way; padding, of which there is none here, counts."""
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
    """What it gives, and the seconds that it takes when it has run before."""
    compute()
    started = time.perf_counter()
    result = compute()
    return result, time.perf_counter() - started


def matmul_rate() -> float:
    """Dense products a second of this device, in operations: the better of two sizes."""
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


def measure_ours(folder: Path, lm, samples: int, length: int) -> tuple[np.ndarray, float]:
    """The embedding (h,), and seconds; on every process that takes part."""
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

            def compute() -> np.ndarray:
                (embeddings,) = embed(
                    extractor,
                    {"stdlib": domain},
                    layers=(middle_layer(settings.n_layer),),
                    samples=samples,
                    sample_length=length,
                    micro_batch_size=default_batch(),
                    seed=SEED,
                )
                return embeddings["stdlib"].embedding

            return timed(compute)


def in_processes(processes: int, arguments: list[str]) -> float:
    """Tokens a second of ours in so many processes of one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    command += ["--standalone", "-m", "benchmarks.embedding", *arguments]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=one_thread)
    return float(json.loads(done.stdout.splitlines()[-1])["ours_tokens_per_second"])


def main() -> None:
    """Measure, print the table and the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small model, seconds in all")
    parser.add_argument("--ours-in", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    cuda, quick = torch.cuda.is_available(), arguments.quick
    length = 64 if quick else 512
    samples = 64 if quick else 4096 if cuda else 64
    lm = gpt2(length, quick)
    if arguments.ours_in:  # one of several processes
        with process_group():
            _, seconds = measure_ours(Path(arguments.ours_in), lm, samples, length)
            if is_first_rank():
                print(json.dumps({"ours_tokens_per_second": samples * length / seconds}))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data(folder)
        domain = IndexedDomain.open("stdlib", str(folder / "stdlib"))
        tokens = sum(len(domain.window(i, length, SEED).tokens) for i in range(samples))
        with process_group():
            ours, seconds = measure_ours(folder, lm, samples, length)
            rate = matmul_rate()
        tokenizer = load_tokenizer(str(folder / "tokenizer.json"))
        lm = lm.to("cuda" if cuda else "cpu")
        their, their_seconds = timed(lambda: theirs(lm, domain, tokenizer, samples, length))
        width, layers = lm.config.n_embd, middle_layer(6)
        operations = layers * (24 * width**2 + 4 * length * width)  # a token's, attention included
        figures = {
            "benchmark": "embedding",
            "quick": quick,
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "tokens": tokens,
            "ours_tokens_per_second": tokens / seconds,
            "theirs_tokens_per_second": tokens / their_seconds,
            "times": their_seconds / seconds,
            "share_of_matmul_rate": operations * tokens / seconds / rate,
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
