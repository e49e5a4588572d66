"""Names that checkpoints and scripts made earlier refer to, where they were then.

NeMo and Megatron-Bridge record functions and classes with a checkpoint by the name of their module,
so an old checkpoint can be read only if that module can still be imported.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_MOVED = {
    "nemo_chameleon.model": {"layers": ("nemo_chameleon.models.layers", "layer_spec")},
    "nemo_chameleon.experiment": {"chain": ("nemo_chameleon.launch.nemo_run", "chain")},
}
"""For each former module: its names, and the module and the name of each today."""


class _MovedModules(MetaPathFinder, Loader):
    """Imports a former module as one that holds its names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for a former module, and None for any other name."""
        del path, target
        return ModuleSpec(fullname, self) if fullname in _MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Give the module its names."""
        for name, (place, today) in _MOVED[module.__name__].items():
            setattr(module, name, getattr(import_module(place), today))


def keep_importable() -> None:
    """Let former modules be imported; calling it again changes nothing."""
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(_MovedModules())
