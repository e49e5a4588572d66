"""Train the proxies and stop, as the first of three jobs that need different numbers of nodes.

    torchrun --nproc_per_node=8 recipes/train_proxy.py --config FILE [key=value ...]

`compute_mixture.py` continues with the proxies, and `pretrain_chameleon.py` with the mixture;
`recipes/slurm/chain.sh` submits the three. If a mixture or another model that embeds exists, there
is nothing to train: the recipe says so and ends.
"""

from nemo_chameleon.utils.console import program


@program
def main() -> None:
    """Train the proxies, or resume their training."""
    from nemo_chameleon import provider
    from nemo_chameleon.config import load_mixture_config, parse_command_line
    from nemo_chameleon.distributed.processes import process_group
    from nemo_chameleon.provider import proxy

    config = parse_command_line(load=load_mixture_config)
    with process_group():
        proxy.train_proxy(provider.prepare_mixture(config))


if __name__ == "__main__":
    main()
