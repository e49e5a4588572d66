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
from nemo_chameleon.engines.host_datasets import reading_as
from nemo_chameleon.utils.errors import UserError

Provider = Callable[..., Any]
# Options under which a plan would not be followed.
_REFUSED = {
    "phase_transition_iterations": "draws each phase from its first sample on: leave it out, "
    "because data.stages in --mixture-config says when a stage begins",
    **dict.fromkeys(
        ("sft", "fim_data", "mock_data"),
        "draws from datasets of another kind than a plan does: leave it out, or remove data.stages "
        "and set data.order=megatron in --mixture-config",
    ),
}


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
        help="what to do when the run continues from checkpoints of another mixture or other "
        "stages (default: %(default)s)",
    )
    return parser


def with_mixture(provider: Provider) -> Provider:
    """Wrap a `train_valid_test_datasets_provider` so that its training set follows `--mixture`.

    The provider still builds the datasets; only weights in the arguments that it reads are changed.
    They are those of `--train-data-path` or, without it, those of `--data-path`. In the second case
    the validation and test sets follow the mixture too. Where the run follows a plan (data.stages
    of `--mixture-config`), the training set is this package's, and the provider builds the others.

    Args:
        provider: the provider of a training script.

    Returns:
        A provider with the same arguments and attributes.
    """
    planned: list[Any] = []  # Megatron-LM calls a provider once for each virtual pipeline stage

    @functools.wraps(provider)
    def drawing(train_val_test_num_samples: Any, *args: Any, **kwargs: Any) -> Any:
        from megatron import training

        options, sizes = training.get_args(), train_val_test_num_samples
        if not planned:
            draw = apply(options, sizes[0])
            if draw is None or draw.plan is None:
                return provider(sizes, *args, **kwargs)
            theirs = {**vars(options), "tokenizer": training.get_tokenizer()}
            theirs["create_attention_mask"] = options.create_attention_mask_in_dataloader
            kind = reading_as(argparse.Namespace(**theirs))
            planned.append(draw.plan.training_set(kind))
        evaluated = options.data_path or options.valid_data_path or options.test_data_path
        if not evaluated or not any(size != 0 for size in sizes[1:]):
            return planned[0], None, None
        # The provider builds a training set from --data-path too, which is as small as can be.
        return (planned[0], *provider([1, *sizes[1:]], *args, **kwargs)[1:])

    return drawing


def apply(args: argparse.Namespace, samples: int) -> host.Draw | None:
    """Put a mixture's weights into Megatron-LM's parsed arguments.

    Args:
        args: the arguments, which are changed in place. Where `args.mixture` is None they stay as
            they are, but a run that began with a mixture is refused. Where the run follows a plan,
            they have no `--train-data-path` any more.
        samples: number of samples that the run trains on.

    Returns:
        What the run draws; None where `args.mixture` is None.

    Raises:
        UserError: the mixture cannot be read or computed; the message says what to do.
    """
    load = None if args.finetune else args.load
    if args.mixture is None:
        host.refuse_unasked(args.save, load, args.on_mixture_change)
        return None
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
    draw = draw.within(samples, args.seq_length, args.seed, batch=args.global_batch_size)
    per_split = key == "train_data_path" or args.valid_data_path or args.test_data_path
    if draw.asked is not None:
        draw.asked.require_host(None if per_split else args.split, args.dataloader_type)
        for option, why in _REFUSED.items():
            if getattr(args, option, None):
                raise UserError(f"--{option.replace('_', '-')} {why}")
    draw = draw.kept(
        args.save, load, args.on_mixture_change, lambda: int(args.consumed_train_samples)
    )
    setattr(args, key, draw.pairs)
    if draw.plan is not None and per_split:
        args.train_data_path = args.data_path = None
    return draw
