"""Compute a mixture and stop, for instance for a host that trains the base model.

    torchrun --nproc_per_node=8 recipes/compute_mixture.py --config FILE [key=value ...]

This trains the proxy on uniform weights, or loads it, embeds the domains and writes
`chameleon.file`. Steps that are finished already are not repeated. Keys of the base model are not
used.
"""

from nemo_chameleon.utils.console import program


@program
def main() -> None:
    """Compute the mixture and print it."""
    from nemo_chameleon import provider
    from nemo_chameleon.config import load_mixture_config, parse_command_line
    from nemo_chameleon.distributed.processes import process_group
    from nemo_chameleon.mixture.tables import show_mixture
    from nemo_chameleon.utils.ranks import is_first_rank

    config = parse_command_line(load=load_mixture_config)
    with process_group():
        mixture = provider.unbounded_mixture(provider.prepare_mixture(config))
        if is_first_rank():
            print(show_mixture(mixture), flush=True)


if __name__ == "__main__":
    main()
