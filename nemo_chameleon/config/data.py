"""The keys under `data`: the domains, and the mixture that samples are drawn by.

schema.py describes the conventions that all keys follow.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from nemo_chameleon.config.constraints import setting
from nemo_chameleon.utils.errors import UserError

ON_MIXTURE_CHANGE = ("refuse", "accept", "continue")
MIXTURES = ("chameleon", "uniform", "proportional", "static")
ORDERS = ("auto", "megatron", "streams")
GPT, SFT = "gpt", "sft"


@dataclass
class DatasetConfig:
    """A Megatron dataset, or JSONL to finetune on."""

    path: Any = MISSING  # text, or a list of texts; OmegaConf has no type for that
    """Prefix of the .bin and .idx files; for data.dataset=sft a file of examples, such as JSONL or
    parquet, or a folder of such files. A list of these, or a glob that matches them, makes one
    domain of several parts."""


@dataclass
class DomainConfig(DatasetConfig):
    """One domain: its data and, for data.mixture=static, its weight."""

    weight: float | None = None
    """Share of the samples under data.mixture=static. The weights need not sum to 1."""


@dataclass
class StageConfig:
    """One stage of a run: a mixture, and where the stage ends."""

    until: float | str | None = setting(None, above=0, below=math.inf)
    """Where the stage ends: a share of the run's samples up to 1, a number of samples, or tokens as
    in '1.5T tokens'; rounded to whole global batches. null, for the last stage: the run's end."""
    mixture: str | None = None
    """As data.mixture, which null stands for. Nothing is drawn from domains that a file lacks."""
    max_epochs: float | None = setting(None, above=0, below=math.inf)
    """The most passes over a domain from the run's start to the stage's end; null:
    data.max_epochs."""
    pin: dict[str, float] = field(default_factory=dict)
    """As data.pin, which no entries stand for."""
    floor: dict[str, float] = field(default_factory=dict)
    """As data.floor, which no entries stand for."""


@dataclass
class DataConfig:
    """The domains, and the weights by which samples are drawn from them."""

    dataset: str = setting(GPT, choices=(GPT, SFT))
    """gpt: Megatron's indexed datasets of tokens, with loss on all tokens. sft: JSONL of chats, of
    prompts with completions, or of text, with loss on the answers."""
    mixture: str = "chameleon"
    """chameleon, uniform, proportional, static, or the path of a mixture file."""
    stages: list[StageConfig] = field(default_factory=list)
    """The stages of the run, in order, each with a mixture; none: data.mixture for the whole run. A
    domain's samples are counted over all stages, and none comes twice before all have come once."""
    order: str = setting("auto", choices=ORDERS)
    """How samples are ordered: megatron (Megatron's blend, which depends on the whole run), streams
    (which depends on what was drawn before alone, and is computed while the run goes on), or auto:
    streams for several stages or more than 100 domains, and else megatron."""
    domains: dict[str, DomainConfig] = field(default_factory=dict)
    """The domains by name; there must be at least two."""
    validation: dict[str, DatasetConfig] = field(default_factory=dict)
    """Datasets for evaluation only, by name. A set named like a domain replaces that domain's
    validation split; any other set is evaluated in addition to the domains."""
    on_mixture_change: str = setting("refuse", choices=ON_MIXTURE_CHANGE)
    """What a run does with a checkpoint that was trained with another mixture or other stages:
    refuse; continue, which keeps what was drawn and follows the new ones from there on; or accept,
    which draws as if the new ones had been there from the start, so that samples may repeat."""
    max_epochs: float | None = setting(None, above=0, below=math.inf)
    """The most passes over any one domain; null for no cap. The weight that the cap frees goes to
    the other domains in proportion to their weights."""
    pin: dict[str, float] = field(default_factory=dict)
    """Fixed shares of domains, by name. The other domains keep their proportions."""
    floor: dict[str, float] = field(default_factory=dict)
    """Least shares of domains, by name."""
    unit: str = setting("samples", choices=("samples", "tokens"))
    """What weights are shares of: samples, or tokens (only those with a loss)."""
    split: str = "95,5,0"
    """Megatron's split of each domain's documents into training, validation and test."""
    tokenizer: str | None = None
    """The tokenizer that the domains were tokenised with or, for data.dataset=sft, will be
    tokenised with: a tokenizer.json, or a Hugging Face model by its folder or by its name in the
    local cache. Its highest token id, plus one, is the size of the vocabulary."""
    chat_template: str | None = setting(None, only_for=SFT)
    """sft: the Jinja file that chats are written with; null: the template beside the tokenizer."""
    ignored_keys: list[str] = setting([], only_for=SFT)
    """sft: keys of lines and of messages that are left out, because they say nothing to train on.
    Common metadata, such as id and source, need not be listed; any other key is an error."""
    packing: bool = setting(True, only_for=SFT)
    """sft: true packs several examples into a sample, with attention within each example only;
    false puts one example into each sample."""
    on_malformed: str = setting("refuse", choices=("refuse", "skip"), only_for=SFT)
    """sft: what happens to lines that cannot be read as examples: refuse or skip."""
    on_too_long: str = setting("refuse", choices=("refuse", "skip", "truncate"), only_for=SFT)
    """sft: what happens to examples longer than model.seq_length: refuse; skip; or truncate, which
    drops their beginnings and keeps their last answers whole."""
    vocab_size: int | None = setting(None, minimum=1)
    """The size of the vocabulary; set it if no tokenizer is given."""
    cache: str = "${output}/cache"
    """The folder of Megatron's sample indices and, for sft, of tokens. Runs may share it."""
    num_workers: int = setting(2, minimum=0)
    """Processes per rank that read samples; 0 reads in the training process."""


def require_paths(data: DataConfig) -> None:
    """Check that every path is text, or a list of texts.

    Args:
        data: the data configuration.

    Raises:
        UserError: a path is something else; the error names the key.
    """
    for section, entries in (("domains", data.domains), ("validation", data.validation)):
        for name, entry in entries.items():
            require_path(entry.path, f"data.{section}.{name}.path")


def require_path(path: Any, key: str) -> str | list[str]:
    """Check that a path is text, or a list of texts.

    Args:
        path: what was given.
        key: what the path is for; errors begin with it.

    Returns:
        The path.

    Raises:
        UserError: the path is something else.
    """
    parts = path if isinstance(path, list) else [path]
    if not parts:
        raise UserError(f"{key}=[] is empty: name at least one part")
    for part in parts:
        if not isinstance(part, str):
            raise UserError(
                f"{key}={path} must be text, or a list of texts: write {part} in quotes, if it is "
                "a path"
            )
    return path if isinstance(path, str) else parts
