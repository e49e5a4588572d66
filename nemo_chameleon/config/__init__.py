"""The configuration: its schema, how it is read, and what is refused before anything runs.

schema.py        every setting: its default, what it may be, what it means
constraints.py   ranges and choices of a setting, and the one check of them
loading.py       defaults, then the file, then the command line
validation.py    combinations of settings that cannot run
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
