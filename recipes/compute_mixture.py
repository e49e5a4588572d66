"""Compute a mixture and stop: for a host that trains the base model itself.

    torchrun --nproc_per_node=8 recipes/compute_mixture.py --config FILE [key=value ...]

Trains the proxy on uniform weights, or loads it, embeds the domains and writes `chameleon.file`;
what of that is there already is not done again. Keys of the base model are not used.
"""

from nemo_chameleon.console import program


@program
def main() -> None:
    """Compute the mixture, print it."""
    from nemo_chameleon import parallel, provider, report
    from nemo_chameleon.config import load_mixture_config, parse_command_line

    config = parse_command_line(load=load_mixture_config)
    with parallel.processes():
        domains = provider.prepare_mixture(config)
        parallel.say(report.show_mixture(provider.unbounded_mixture(config, domains)))


if __name__ == "__main__":
    main()
