"""NeMo 1: a mixture's weights in `model.data.data_prefix`, which its GPT models blend by.

Call it like this at the beginning of the script that Hydra starts:

    from nemo_chameleon.engines.nemo1 import use_mixture

    @hydra_runner(config_path="conf", config_name="megatron_gpt_config")
    def main(cfg):
        use_mixture(cfg)

docs/hosts/nemo.md has more.
"""

from pathlib import Path
from typing import Any

from megatron.core.datasets.utils import get_blend_from_list
from omegaconf import OmegaConf

from nemo_chameleon.engines import host
from nemo_chameleon.utils.errors import UserError


def use_mixture(cfg: Any) -> Any:
    """Write a mixture's weights into NeMo 1's `model.data.data_prefix`.

    The keys `model.data.mixture`, `mixture_config` and `on_mixture_change` say which mixture; the
    command line adds them, for example as `+model.data.mixture=chameleon`. Without the first key
    nothing is changed. If `exp_manager.explicit_log_dir` names the folder of the checkpoints, the
    mixture is saved there and compared with the one that the run began with.

    Args:
        cfg: the OmegaConf configuration; it is changed in place.

    Returns:
        The same configuration.

    Raises:
        UserError: the mixture cannot be read or computed, or the configuration has several stages;
            the message says what to do.
    """
    data = cfg.model.data
    wanted = data.get("mixture")
    logs = (cfg.get("exp_manager") or {}).get("explicit_log_dir")
    save = Path(logs) / "checkpoints" if logs else None
    on_change = data.get("on_mixture_change", "refuse")
    if wanted is None:
        host.refuse_unasked(save, None, on_change)
        return cfg
    given = OmegaConf.to_container(data.data_prefix) if data.get("data_prefix") else None
    training = given.get("train") if isinstance(given, dict) else given
    prefixes, weights = get_blend_from_list(training) or (None, None)
    draw = host.resolve(
        wanted,
        prefixes,
        weights,
        config=data.get("mixture_config"),
        saved=(save,),
        planned=False,
    )
    if cfg.trainer.max_steps <= 0:
        raise UserError(
            "set trainer.max_steps: the mixture's bounds depend on the number of samples"
        )
    samples = cfg.trainer.max_steps * cfg.model.global_batch_size
    draw = draw.within(samples, cfg.model.encoder_seq_length)
    pairs = draw.kept(save, on_change=on_change).pairs
    data.data_prefix = {**given, "train": pairs} if isinstance(given, dict) else pairs
    return cfg
