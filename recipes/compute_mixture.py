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
    from nemo_chameleon.cli.mixtures import compute_mixture
    from nemo_chameleon.config import load_mixture_config, parse_command_line

    compute_mixture(parse_command_line(load=load_mixture_config))


if __name__ == "__main__":
    main()
