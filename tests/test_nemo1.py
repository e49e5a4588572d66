"""engines/nemo1.py: NeMo 1's configuration draws by a mixture; NeMo itself is not needed."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from nemo_chameleon import UserError
from nemo_chameleon.engines.nemo1 import use_mixture
from project import write_stages


@pytest.mark.parametrize("by_split", [False, True])
def test_data_prefix_follows_the_mixture(
    corpus: Path, tmp_path: Path, mixture: Path, by_split: bool
) -> None:
    """`data_prefix` follows `model.data.mixture`, and a continued run refuses another mixture."""
    code, prose = str(corpus / "code"), str(corpus / "prose")
    prefixes = [0.7, code, 0.3, prose]
    rest = {"validation": [str(corpus / "legal")], "test": [str(corpus / "legal")]}
    given: Any = {"train": prefixes, **rest} if by_split else prefixes
    cfg = OmegaConf.create(
        {
            "trainer": {"max_steps": 10},
            "exp_manager": {"explicit_log_dir": str(tmp_path / "log")},
            "model": {
                "global_batch_size": 4,
                "encoder_seq_length": 32,
                "data": {"data_prefix": given},
            },
        }
    )
    # In a configuration of Hydra's a key that is not there is an error.
    OmegaConf.set_struct(cfg, True)
    assert OmegaConf.to_container(use_mixture(cfg).model.data) == {"data_prefix": given}
    OmegaConf.update(cfg, "model.data.mixture", str(mixture), force_add=True)
    drawn = ["0.25", code, "0.75", prose]
    expected = {"train": drawn, **rest} if by_split else drawn
    assert OmegaConf.to_container(use_mixture(cfg).model.data.data_prefix) == expected
    assert (tmp_path / "log" / "checkpoints" / "mixture.json").is_file()
    (tmp_path / "log" / "checkpoints" / "step_4" / "weights").mkdir(parents=True)
    cfg.model.data.mixture = "uniform"
    with pytest.raises(ValueError, match="another mixture is asked for"):
        use_mixture(cfg)
    OmegaConf.update(cfg, "model.data.on_mixture_change", "accept", force_add=True)
    use_mixture(cfg)


def test_stages_are_refused(config_file: Path) -> None:
    """NeMo 1 takes weights alone, so a configuration of several stages ends in one line."""
    write_stages(config_file, {"code": 1, "prose": 1, "legal": 1}, {"code": 1}, samples=24)
    data = {"data_prefix": None, "mixture": "uniform", "mixture_config": str(config_file)}
    cfg = OmegaConf.create(
        {
            "trainer": {"max_steps": 10},
            "model": {"global_batch_size": 4, "encoder_seq_length": 32, "data": data},
        }
    )
    with pytest.raises(UserError, match=r"data\.stages and data\.order=streams need a host that"):
        use_mixture(cfg)
