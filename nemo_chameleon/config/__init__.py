"""The configuration: its schema, how it is read, and how it is checked before a run.

schema.py        every setting, with its default, its values and its meaning
constraints.py   the range or choices of a setting, and how they are checked
layers.py        the keys that a file or a setting may have, and what it replaces
loading.py       reads the defaults, then the file, then the command line
validation.py    checks settings that depend on each other
"""

from nemo_chameleon.config.loading import (
    load_config,
    load_mixture_config,
    load_sft_config,
    parse_command_line,
)
from nemo_chameleon.config.schema import Config

__all__ = [
    "Config",
    "load_config",
    "load_mixture_config",
    "load_sft_config",
    "parse_command_line",
]
