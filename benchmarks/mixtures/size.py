"""Read a size of the benchmark: its domains, its models, and the product's configuration."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from nemo_chameleon.config import load_config
from nemo_chameleon.config.schema import Config
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import digest, write_atomically

HERE = Path(__file__).parent
SIZES = tuple(path.stem for path in sorted((HERE / "sizes").glob("*.yaml")))


@dataclass(frozen=True)
class RegMix:
    """RegMix's runs.

    Attributes:
        fit: number of runs that the regression is fitted to.
        held_out: number of runs that it is tested on.
        train_iters: training iterations per run.
        eval_iters: evaluation iterations per run.
    """

    fit: int
    held_out: int
    train_iters: int
    eval_iters: int


@dataclass(frozen=True)
class Arm:
    """What is run of a method.

    Attributes:
        seeds: number of base models, with the seeds 1, 2, ...
        proxies: number of times that the weights are computed, with the seeds 1, 2, ... All base
            models train on the mean of these weights.
    """

    seeds: int
    proxies: int = 1


@dataclass(frozen=True)
class Size:
    """One file of sizes/.

    Attributes:
        name: the file's name without its ending.
        corpora: folder of the texts in the folder of all corpora; "demo" means the demo's texts.
        domains: domains that are mixed.
        unseen: domains that no method sees and models are evaluated on.
        workers: number of tasks that run at the same time.
        methods: what is run of each method, by name, in the order of the tables.
        config: the product's configuration, without its data.
        characters: most characters of training text per domain.
        vocab_size: size of the tokenizer that is trained on the domains; None with `start`, whose
            tokenizer is used.
        regmix: RegMix's runs.
        start: the size whose model on uniform weights is finetuned and embeds the domains.
    """

    name: str
    corpora: str
    domains: list[str]
    unseen: list[str]
    workers: int
    methods: dict[str, Arm]
    config: dict[str, Any]
    characters: int | None = None
    vocab_size: int | None = None
    regmix: RegMix | None = None
    start: str | None = None

    @classmethod
    def load(cls, name: str) -> "Size":
        """Read a size from its file."""
        settings: Any = OmegaConf.to_container(OmegaConf.load(HERE / "sizes" / f"{name}.yaml"))
        if "regmix" in settings:
            settings["regmix"] = RegMix(**settings["regmix"])
        settings["methods"] = {method: Arm(**arm) for method, arm in settings["methods"].items()}
        return cls(name=name, **settings)

    @property
    def folder(self) -> Path:
        """The folder of everything that can be made again."""
        return Path("runs") / "bench" / self.name

    @property
    def data(self) -> Path:
        """The folder of the tokenizer and the datasets."""
        return self.folder / "data"

    def start_folder(self, seed: int) -> Path | None:
        """Return the folder of the checkpoint that a finetuning starts from."""
        if self.start is None:
            return None
        return size_called(self.start).folder / f"seed{seed}" / "start" / "uniform"

    def training_path(self, domain: str) -> str:
        """Return the prefix of a domain's dataset."""
        return str(self.data / f"{domain}.train")

    @cached_property
    def settings(self) -> str:
        """A digest of everything that results depend on, except code, seed and method."""
        # The fingerprints of the data already depend on the number of characters.
        apart = ("workers", "methods", "characters")
        facts = {
            key: value
            for key, value in asdict(self).items()
            if key not in apart and value is not None
        }
        start = {} if self.start is None else {"start": size_called(self.start).settings}
        return digest({**facts, **start, "data": self.data_facts})

    @cached_property
    def data_facts(self) -> dict[str, Any]:
        """Tokens and fingerprints of the datasets, and the text that unseen domains share."""
        facts: dict[str, Any] = json.loads((self.data / "data.json").read_text())
        return facts

    def configured(
        self,
        seed: int,
        name: str,
        mixture: str,
        domains: Sequence[str] = (),
        overrides: Sequence[str] = (),
    ) -> Config:
        """Return the product's configuration for one run.

        Args:
            seed: seed of its parameters, its order of data and its windows.
            name: name of its folder.
            mixture: value of data.mixture.
            domains: domains to mix; all if empty.
            overrides: further settings, as KEY=VALUE.
        """
        data = {
            "mixture": mixture,
            "tokenizer": str(self.data / "tokenizer.json"),
            "split": "100,0,0",
            "num_workers": 0,
            "domains": {
                name: {"path": self.training_path(name)} for name in domains or self.domains
            },
            "validation": {
                name: {"path": str(self.data / f"{name}.val")}
                for name in [*self.domains, *self.unseen]
            },
            "cache": str(self.data / "cache"),
        }
        own: dict[str, Any] = {
            "output": str(self.folder / f"seed{seed}" / name),
            "data": data,
            "train": {"seed": seed},
            "chameleon": {"seed": seed},
            "checkpoint": {"save_interval": 0},
            "logging": {"progress": False, "tensorboard": False, "log_interval": 20},
        }
        if (start := self.start_folder(seed)) is not None:
            own["checkpoint"]["pretrained_checkpoint"] = str(start)
            own["proxy"] = {"load": str(start)}
        merged = OmegaConf.merge(self.config, own)
        # Methods with one seed run side by side, and some differ in data.mixture alone.
        file = self.folder / f"seed{seed}" / f"{name}-{Path(mixture).stem}.yaml"
        write_atomically(file, OmegaConf.to_yaml(merged))
        return load_config(file, overrides)


def size_called(name: str) -> Size:
    """Return a size by its name.

    Raises:
        UserError: no size has this name.
    """
    if name not in SIZES:
        raise UserError(f"unknown size {name!r}; the sizes are {', '.join(SIZES)}")
    return Size.load(name)
