"""When and with which versions something was made."""

from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version


def provenance() -> dict[str, str]:
    """Return the UTC time and the versions of the packages that compute, by name."""
    versions = {}
    for package in ("nemo_chameleon", "megatron-core", "torch", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed as a package"
    return {"time": datetime.now(timezone.utc).isoformat(timespec="seconds"), **versions}
