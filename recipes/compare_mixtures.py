"""Compare mixtures by the models that train on them, at the same seeds.

    torchrun --nproc_per_node=8 recipes/compare_mixtures.py --config FILE \\
        compare.mixtures=[uniform,chameleon,mine.json] compare.seeds=[1,2,3]

Every mixture trains one model per seed, as many at once as the processes allow, with the model and
the length that the configuration says. The recipe prints the differences in loss from the first
mixture, by domain and by set of `data.validation`, with 95 % intervals over seeds, and says in
words what they show. It can be stopped and started again: finished runs are not trained again, and
more seeds or mixtures may be added. `nemo_chameleon/config/comparison.py` has the keys.
"""

from nemo_chameleon.utils.console import program


@program
def main() -> None:
    """Train what is missing, and print the comparison."""
    from nemo_chameleon.comparison.run import compare
    from nemo_chameleon.config import parse_command_line

    compare(parse_command_line())


if __name__ == "__main__":
    main()
