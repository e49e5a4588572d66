"""Keep the measured records of each size in results/SIZE.json; no record is computed twice."""

import json
import platform
from typing import Any

from benchmarks.mixtures.size import HERE, Size
from nemo_chameleon.method.weights import choose_preset
from nemo_chameleon.mixture.mixture import UNRECORDED
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import write_atomically
from nemo_chameleon.utils.provenance import provenance

Record = dict[str, Any]
FOLDER = HERE / "results"


class Results:
    """Records by stage ("weights" or "base"), method and seed."""

    def __init__(self, size: str) -> None:
        """Read the records of a size, none if there is no file."""
        self.path = FOLDER / f"{size}.json"
        self.facts: Record = {"records": {}}
        if self.path.is_file():
            self.facts = json.loads(self.path.read_text())

    @classmethod
    def going_on(cls, size: Size) -> "Results":
        """Read the records of a size in order to add to them.

        Raises:
            UserError: the records have other settings or data than the size has now.
        """
        results = cls(size.name)
        own = {"settings": size.settings, "data": size.data_facts}
        if results.facts.setdefault("settings", size.settings) != size.settings:
            raise UserError(
                f"{results.path} has other settings or data than sizes/{size.name}.yaml; move it "
                "away to measure again"
            )
        results.facts.update(own)
        now = {**choose_preset().settings(), "normalize_states": choose_preset().normalize_states}
        for seed, record in results.of("weights", "chameleon").items():
            if {**UNRECORDED, **record.get("settings", {})} != now:
                raise UserError(
                    f"{results.path}: chameleon, seed {seed}, has the settings "
                    f"{record.get('settings')}, but the defaults are {now}; rename or remove its "
                    "records"
                )
        return results

    def get(self, stage: str, method: str, seed: int) -> Record | None:
        """Return a record, or None if there is none."""
        record: Record | None = self.facts["records"].get(_key(stage, method, seed))
        return record

    def add(self, stage: str, method: str, seed: int, record: Record) -> None:
        """Add a record and write the file."""
        where = {"machine": _machine(), "created": provenance()}
        self.facts["records"][_key(stage, method, seed)] = {**record, **where}
        self.path.parent.mkdir(exist_ok=True)
        write_atomically(self.path, json.dumps(self.facts, indent=1, sort_keys=True) + "\n")

    def methods(self) -> list[str]:
        """Return all methods that have a record."""
        return sorted({key.split("/")[1] for key in self.facts["records"]})

    def of(self, stage: str, method: str) -> dict[int, Record]:
        """Return the records of a method, by seed."""
        found = {}
        for key, record in self.facts["records"].items():
            own_stage, own_method, seed = key.split("/")
            if (own_stage, own_method) == (stage, method):
                found[int(seed)] = record
        return dict(sorted(found.items()))


def _key(stage: str, method: str, seed: int) -> str:
    return f"{stage}/{method}/{seed}"


def _machine() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU"
