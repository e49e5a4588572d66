"""What tests of all kinds share besides fixtures: paths, and a small configuration."""

import argparse
import asyncio
import collections
import configparser
import csv
import decimal
import difflib
import doctest
import email
import fractions
import heapq
import inspect
import pickletools
import random
import shelve
import statistics
import sys
import textwrap
import threading
import tokenize
import unittest
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from nemo_chameleon import Mixture
from nemo_chameleon.data.readers import document_of, files_of, find_files, read_lines

if TYPE_CHECKING:
    import subprocess

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "pretrain_chameleon.py"
WITHIN_A_MINUTE = 60  # seconds
CONSOLE = Path(sys.executable).with_name("nemo-chameleon")

Launch = Callable[..., "subprocess.CompletedProcess[str]"]
Console = Callable[..., "subprocess.CompletedProcess[str]"]


def drawn_alike(k: int, d: int = 64, seed: int = 0) -> np.ndarray:
    """Return embeddings (k, d) that follow one distribution; norms are 0.7 to 1.3 of their mean."""
    generator = np.random.default_rng(seed)
    return generator.normal(size=(k, d)) * generator.uniform(0.7, 1.3, size=(k, 1))


def write_config(corpus: Path, folder: Path) -> Path:
    """Write the configuration of `config_file` to a folder; a run writes to `out` in it."""
    small: dict[str, dict[str, Any]] = {
        "model": {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "seq_length": 32},
        "train": {
            "train_iters": 6,
            "global_batch_size": 8,
            "micro_batch_size": 2,
            "eval_iters": 1,
        },
        "optimizer": {"lr": 1e-2, "min_lr": 1e-3},
    }
    config = {
        "output": str(folder / "out"),
        "data": {
            "tokenizer": str(corpus / "tokenizer.json"),
            "split": "80,20,0",
            "num_workers": 0,
            "domains": {name: {"path": str(corpus / name)} for name in ("code", "prose", "legal")},
        },
        **small,
        "proxy": {
            **small,
            "optimizer": {**small["optimizer"], "lr_warmup_iters": 0},
            "model": {**small["model"], "num_layers": 4},
        },
        "chameleon": {"samples": 24, "micro_batch_size": 8},
        "logging": {"progress": False},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def write_stages(file: Path, *stages: Mapping[str, float], samples: int, **data: Any) -> None:
    """Give a configuration stages of so many samples each, by weights; `data` replaces its keys."""
    config, given = yaml.safe_load(file.read_text()), []
    for number, weights in enumerate(stages, 1):
        mixture = file.with_name(f"stage{number}.json")
        Mixture.static(weights).save(mixture)
        until = {"until": samples * number} if number < len(stages) else {}
        given.append({"mixture": str(mixture), **until})
    config["data"] |= {"stages": given, **data}
    file.write_text(yaml.safe_dump(config, sort_keys=False))


def read_documents(paths: Iterable[str | Path], key: str = "text") -> Iterator[str]:
    """Yield the documents of files, as `prepare` reads them."""
    files, _ = files_of(find_files([str(path) for path in paths]))
    return (document_of(line, files, key) for line in read_lines(files, key=key))


def texts_of_corpus() -> dict[str, list[str]]:
    """Return the documents of each domain of `corpus`, by its name."""
    modules = [argparse, configparser, csv, difflib, fractions, heapq, shelve, tokenize]
    licence = (ROOT / "LICENSE").read_text()
    return {
        "code": [inspect.getsource(module) for module in modules],
        # Every installation has these docstrings.
        "prose": [module.__doc__ for module in _documented() if module.__doc__],
        # Each line is a document, and most lines are shorter than a window.
        "legal": [line for line in licence.splitlines() if len(line) > 20],
    }


def _documented() -> list[object]:
    modules = [argparse, asyncio, collections, csv, decimal, difflib, doctest, email, fractions]
    modules += [heapq, inspect, pickletools, random, statistics, textwrap, threading, tokenize]
    modules += [unittest]
    members = [getattr(module, name) for module in modules for name in sorted(vars(module))]
    return [m for m in members if isinstance(getattr(m, "__doc__", None), str)][:400]
