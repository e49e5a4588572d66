"""Finetune on a mixture of domains of chats, prompts and completions, or text.

    torchrun --nproc_per_node=8 recipes/sft_chameleon.py --config FILE [key=value ...]

This is recipes/pretrain_chameleon.py with data.dataset=sft: the domains are JSONL, the loss is on
the answers, and the run starts from checkpoint.pretrained_checkpoint. With data.mixture=chameleon
that model embeds the domains, by the answers' tokens. Copy `conf/sft_chameleon.yaml` to begin.
"""

from nemo_chameleon.utils.console import program


@program
def main() -> None:
    """Resolve the mixture and finetune the model on it."""
    # As in recipes/pretrain_chameleon.py.
    from nemo_chameleon import engines
    from nemo_chameleon.config import load_sft_config, parse_command_line

    engines.train(parse_command_line(load=load_sft_config))


if __name__ == "__main__":
    main()
