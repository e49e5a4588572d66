"""nemo-chameleon doctor: each dependency has a line, and no other project is taken for apex."""

from pathlib import Path

import pytest

from nemo_chameleon.launch import doctor


def lines() -> dict[str, str]:
    """Return what is found and what is advised, by what was looked for."""
    return {f.what: f"{f.found}: {f.advice}" for f in doctor.examine()}


def test_all_that_matters_has_a_line() -> None:
    """What is installed has its version, and what is missing has the command that installs it."""
    found = lines()
    looked_for = "torch CUDA NCCL gloo megatron-core transformer_engine apex nemo_toolkit"
    assert list(found) == [*looked_for.split(), "megatron-bridge", "SLURM"]
    assert found["megatron-core"].endswith("engine=megatron")
    assert doctor.table(doctor.examine()).count("\n") == len(found) - 1


def test_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Untested versions are named, and so is a megatron-core that NeMo does not train on."""
    versions = {"megatron-core": "0.16.1", "nemo_toolkit": "2.7.3", "megatron-bridge": "0.2.0"}
    monkeypatch.setattr(doctor, "_version", versions.get)
    found = lines()
    failing = "2.7.3: its training fails on megatron-core 0.16.1: pip install megatron-core==0.15.3"
    assert found["nemo_toolkit"] == failing
    assert found["megatron-bridge"].startswith("0.2.0: outside >=0.3,<0.7")
    versions.clear()
    assert "pip install --no-deps megatron-bridge" in lines()["megatron-bridge"]
    assert "pip install 'nemo_toolkit" in lines()["nemo_toolkit"]


def test_the_other_apex(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package called apex on PyPI is told from NVIDIA's without being imported."""
    package = tmp_path / "apex"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert doctor.is_nvidias_apex() is False
    assert "pip uninstall apex" in lines()["apex"]
    (package / "multi_tensor_apply").mkdir()
    assert doctor.is_nvidias_apex() is True
    (package / "__init__.py").unlink()
    monkeypatch.undo()
    assert doctor.is_nvidias_apex() is None
