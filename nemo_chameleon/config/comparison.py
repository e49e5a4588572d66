"""The keys under `compare`, which recipes/compare_mixtures.py alone uses."""

import math
from dataclasses import dataclass, field

from nemo_chameleon.config.constraints import setting


@dataclass
class CompareConfig:
    """Which mixtures are compared, with how many runs of each."""

    mixtures: list[str] = field(default_factory=lambda: ["uniform", "chameleon"])
    """Values of data.mixture; all others are compared with the first one."""
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    """Values of train.seed; every mixture has one run of each."""
    processes: int | None = setting(None, minimum=1)
    """Processes of one run; null: as few as `parallel` needs, so that many runs go on at once."""
    difference: float = setting(0.01, above=0, below=math.inf)
    """The smallest difference in loss that matters, in nats per token. It decides how many more
    seeds are advised where two mixtures cannot be told apart."""
    worst: float | None = setting(None, minimum=0, below=math.inf)
    """The most nats per token that the loss on any one domain may rise by; null: no such limit."""
    keep_checkpoints: bool = False
    """Whether the checkpoints of finished runs are kept."""
