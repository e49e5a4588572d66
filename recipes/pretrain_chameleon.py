"""Pretrain on a mixture of domains.

    torchrun --nproc_per_node=8 recipes/pretrain_chameleon.py --config FILE [key=value ...]

With data.mixture=chameleon: trains the proxy on uniform weights, embeds the domains, computes
their weights, writes the mixture file, and trains the base model on it. A second start finds what
is there and goes on. Other values of data.mixture: uniform, proportional, static, or the path of a
mixture file. `conf/pretrain_chameleon.yaml` is a configuration to copy.
"""

from nemo_chameleon.console import program


@program
def main() -> None:
    """Resolve the mixture, train the base model on it, print its loss by domain."""
    # Megatron's checkpoint writer starts a process that imports this file again: what stands here
    # it need not wait for.
    from nemo_chameleon import parallel, provider, report, training
    from nemo_chameleon.config import parse_command_line

    config = parse_command_line()
    domains = provider.prepare(config)
    with parallel.processes():
        mixture = provider.resolve_mixture(config, domains)
        result = training.train(provider.base_job(config, domains, mixture))
        parallel.say(report.compare([result]))


if __name__ == "__main__":
    main()
