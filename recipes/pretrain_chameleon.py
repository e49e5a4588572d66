"""Pretrain on a mixture of domains.

    torchrun --nproc_per_node=8 recipes/pretrain_chameleon.py --config FILE [key=value ...]

With data.mixture=chameleon: trains the proxy on uniform weights, embeds the domains, computes
their weights, writes the mixture file, and trains the base model on it. A second start finds what
is there and goes on. Other values of data.mixture: uniform, proportional, static, or the path of a
mixture file. engine=nemo and engine=bridge hand the base model to NeMo 2 and to Megatron-Bridge.
`conf/pretrain_chameleon.yaml` is a configuration to copy.
"""

from nemo_chameleon.utils.console import program


@program
def main() -> None:
    """Resolve the mixture and train the base model on it."""
    # Megatron's checkpoint writer starts a process that imports this file again: what stands here
    # it need not wait for.
    from nemo_chameleon import engines
    from nemo_chameleon.config import parse_command_line

    engines.train(parse_command_line())


if __name__ == "__main__":
    main()
