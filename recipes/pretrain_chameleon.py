"""Pretrain on a mixture of domains.

    torchrun --nproc_per_node=8 recipes/pretrain_chameleon.py --config FILE [key=value ...]

With data.mixture=chameleon this trains the proxy on uniform weights, embeds the domains, computes
their weights, writes the mixture file, and trains the base model on that mixture. A second start
finds what exists and continues. Other values of data.mixture are uniform, proportional, static, and
the path of a mixture file. With engine=nemo or engine=bridge, NeMo 2 or Megatron-Bridge trains the
base model. Copy `conf/pretrain_chameleon.yaml` to begin.
"""

from nemo_chameleon.utils.console import program


@program
def main() -> None:
    """Resolve the mixture and train the base model on it."""
    # Megatron's checkpoint writer starts a process that imports this file again. It does not need
    # these imports, and does not wait for them here.
    from nemo_chameleon import engines
    from nemo_chameleon.config import parse_command_line

    engines.train(parse_command_line())


if __name__ == "__main__":
    main()
