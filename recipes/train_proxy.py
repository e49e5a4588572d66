"""Train the proxy and stop: the first of three jobs, where each gets the nodes that it needs.

    torchrun --nproc_per_node=8 recipes/train_proxy.py --config FILE [key=value ...]

`compute_mixture.py` goes on with it, and `pretrain_chameleon.py` with what that leaves, as
`recipes/slurm/chain.sh` has them do. Where there is nothing to train, a mixture or another model
that embeds, it says so and ends.
"""

from nemo_chameleon.utils.console import program


@program
def main() -> None:
    """Train the proxy, or go on with it."""
    from nemo_chameleon import provider
    from nemo_chameleon.config import load_mixture_config, parse_command_line
    from nemo_chameleon.distributed.processes import process_group
    from nemo_chameleon.provider import proxy

    config = parse_command_line(load=load_mixture_config)
    with process_group():
        proxy.train_proxy(provider.prepare_mixture(config))


if __name__ == "__main__":
    main()
