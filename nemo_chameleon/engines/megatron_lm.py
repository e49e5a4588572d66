"""Megatron-LM: its own datasets provider, with weights that follow a mixture.

Change a copy of pretrain_gpt.py like this, where it calls `pretrain`:

    from nemo_chameleon.engines.megatron_lm import add_arguments, with_mixture

    pretrain(
        with_mixture(train_valid_test_datasets_provider),
        ...,
        extra_args_provider=add_arguments,
    )

Then add `--mixture chameleon --mixture-config mine.yaml`, or `--mixture FILE`, to its command line.
"""

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron.core.datasets.utils import get_blend_from_list

from nemo_chameleon.config.data import ON_MIXTURE_CHANGE
from nemo_chameleon.engines import host

Provider = Callable[..., Any]


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add this package's options; this is Megatron-LM's `extra_args_provider`.

    Args:
        parser: Megatron-LM's parser.

    Returns:
        The same parser.
    """
    group = parser.add_argument_group("nemo_chameleon")
    group.add_argument(
        "--mixture",
        help="weights of the training set: chameleon, uniform, proportional, static (the weights "
        "of --data-path), or a mixture file (default: no mixture, the data arguments as they are)",
    )
    group.add_argument(
        "--mixture-config",
        metavar="FILE",
        help="configuration of nemo_chameleon, which names the domains and says how the mixture is "
        "computed (default: none, which is enough for static, uniform and a mixture file)",
    )
    group.add_argument(
        "--on-mixture-change",
        choices=ON_MIXTURE_CHANGE,
        default="refuse",
        help="what to do when the run continues from checkpoints of another mixture "
        "(default: %(default)s)",
    )
    return parser


def with_mixture(provider: Provider) -> Provider:
    """Wrap a `train_valid_test_datasets_provider` so that its training set follows `--mixture`.

    The provider still builds the datasets; only weights in the arguments that it reads are changed.
    They are those of `--train-data-path` or, without it, those of `--data-path`. In the second case
    the validation and test sets follow the mixture too.

    Args:
        provider: the provider of a training script.

    Returns:
        A provider with the same arguments and attributes.
    """

    @functools.wraps(provider)
    def drawing(train_val_test_num_samples: Any, *args: Any, **kwargs: Any) -> Any:
        from megatron.training import get_args

        apply(get_args(), train_val_test_num_samples[0])
        return provider(train_val_test_num_samples, *args, **kwargs)

    return drawing


def apply(args: argparse.Namespace, samples: int) -> None:
    """Put a mixture's weights into Megatron-LM's parsed arguments.

    Args:
        args: the arguments, which are changed in place. Where `args.mixture` is None they stay as
            they are, but a run that began with a mixture is refused.
        samples: number of samples that the run trains on.

    Raises:
        UserError: the mixture cannot be read or computed; the message says what to do.
    """
    load = None if args.finetune else args.load
    if args.mixture is None:
        host.refuse_unasked(args.save, load, args.on_mixture_change)
        return
    if args.per_split_data_args_path is not None:
        of_split = json.loads(Path(args.per_split_data_args_path).read_text())
        for split in ("train", "valid", "test"):
            given = of_split[split]
            setattr(args, f"{split}_data_path", given.split() if isinstance(given, str) else given)
        args.per_split_data_args_path = None
    if args.data_args_path is not None:
        args.data_path, args.data_args_path = Path(args.data_args_path).read_text().split(), None
    key = "train_data_path" if args.train_data_path else "data_path"
    paths, weights = get_blend_from_list(getattr(args, key) or None) or (None, None)
    draw = host.resolve(
        args.mixture,
        paths,
        weights,
        config=args.mixture_config,
        saved=(args.save, load),
    )
    draw = draw.within(samples, args.seq_length).kept(args.save, load, args.on_mixture_change)
    setattr(args, key, draw.pairs)
