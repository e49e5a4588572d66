"""When and with which versions something was made."""

from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version


def package_version(package: str = "nemo_chameleon") -> str:
    """Return the version of an installed package.

    Args:
        package: the package's name.

    Returns:
        The version, or words that say that the package is not installed, but for instance used
        from a checkout.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed as a package"


def provenance() -> dict[str, str]:
    """Return the UTC time and the versions of the packages that compute, by name."""
    packages = ("nemo_chameleon", "megatron-core", "torch", "numpy")
    versions = {package: package_version(package) for package in packages}
    return {"time": datetime.now(timezone.utc).isoformat(timespec="seconds"), **versions}
