"""What is installed here, what works with it, and what to install for the rest.

`examine` looks at one package or device after the other, and `table` lays the findings out as text.
"""

import importlib.util
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.specifiers import SpecifierSet

# The versions that the adapters are written for; docs/hosts says which of them have been run.
_SUPPORTED = {
    "megatron-core": ">=0.15,<0.20",
    "nemo_toolkit": ">=2.4,<3",
    "megatron-bridge": ">=0.3,<0.7",
}
_NONE = "not found"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table.

    Attributes:
        what: the package, library or device that was looked for.
        found: its version, or a note that it was not found.
        advice: what works with it or without it, and what to install.
    """

    what: str
    found: str
    advice: str = ""


def examine() -> list[Finding]:
    """Look for everything that the package can use, in the order in which one needs another.

    Returns:
        A finding for each, whether it was found or not.
    """
    return [*_torch(), _core(), *_kernels(), _nemo(), _bridge(), _slurm()]


def table(findings: list[Finding]) -> str:
    """Lay out findings as text in columns.

    Args:
        findings: the findings, at least one.

    Returns:
        A line for each finding, without a line break at the end.
    """
    what, found = (max(len(getattr(f, name)) for f in findings) for name in ("what", "found"))
    lines = (f"{f.what:{what}}  {f.found:{found}}  {f.advice}".rstrip() for f in findings)
    return "\n".join(lines)


def is_nvidias_apex() -> bool | None:
    """Return whether the `apex` that can be imported is NVIDIA's.

    Only files are looked at, because importing another project called apex would run its code.

    Returns:
        True or False; None where no `apex` can be imported.
    """
    spec = importlib.util.find_spec("apex")
    if spec is None:
        return None
    places = spec.submodule_search_locations or []
    return any((Path(place) / "multi_tensor_apply").is_dir() for place in places)


def _torch() -> list[Finding]:
    import torch
    from torch import distributed

    cuda = "runs train in bf16" if torch.cuda.is_available() else "runs train in fp32 on CPUs"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    nccl = distributed.is_nccl_available()
    needed = torch.cuda.is_available() and not nccl
    return [
        Finding("torch", torch.__version__, ""),
        Finding("CUDA", f"{torch.version.cuda}, {device}" if torch.version.cuda else _NONE, cuda),
        Finding(
            "NCCL",
            "found" if nccl else _NONE,
            "several GPUs need it: install a build of torch that has it" if needed else "",
        ),
        Finding(
            "gloo",
            "found" if distributed.is_gloo_available() else _NONE,
            "for several processes without CUDA",
        ),
    ]


def _core() -> Finding:
    return _judged("megatron-core", "engine=megatron", "pip install 'megatron-core>=0.15,<0.20'")


def _kernels() -> list[Finding]:
    engine = _version("transformer_engine") or _version("transformer-engine")
    apex = is_nvidias_apex()
    if apex is False:
        advice = "another project of that name, which is not used: pip uninstall apex"
        found = f"{_version('apex') or 'found'}, not NVIDIA's"
    else:
        found = _NONE if apex is None else _version("apex") or "found"
        advice = "gives a fused layer norm without Transformer Engine; from NVIDIA's containers"
    either = "optimizer.use_distributed_optimizer needs it or NVIDIA's apex" if not engine else ""
    return [
        Finding("transformer_engine", engine or _NONE, either),
        Finding("apex", found, advice),
    ]


def _nemo() -> Finding:
    install = "pip install 'nemo_toolkit[nlp]>=2.4,<3' (docs/hosts/nemo.md has the pins)"
    finding = _judged("nemo_toolkit", "engine=nemo, MixtureDataModule", install)
    core = _version("megatron-core")
    if finding.found == _NONE or core is None or core in SpecifierSet("<0.16"):
        return finding
    return Finding(
        finding.what,
        finding.found,
        f"its training fails on megatron-core {core}: pip install megatron-core==0.15.3",
    )


def _bridge() -> Finding:
    install = "pip install --no-deps megatron-bridge (docs/hosts/bridge.md has the pins)"
    return _judged("megatron-bridge", "engine=bridge, MixtureDatasetConfig", install)


def _slurm() -> Finding:
    found = shutil.which("sbatch")
    return Finding("SLURM", found or _NONE, "" if found else "only needed where jobs are submitted")


def _judged(package: str, serves: str, install: str) -> Finding:
    found = _version(package)
    if found is None:
        return Finding(package, _NONE, f"for {serves}: {install}")
    wanted = _SUPPORTED[package]
    if not SpecifierSet(wanted).contains(found, prereleases=True):
        return Finding(package, found, f"outside {wanted}, which {serves} is written for")
    return Finding(package, found, f"for {serves}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
