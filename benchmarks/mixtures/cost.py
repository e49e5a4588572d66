"""Count the floating point operations of models by the usual rule.

Training takes six operations per weight and token, plus those of attention. The forward pass takes
a third of them. Looking up the embeddings of tokens and positions takes none.
"""

from nemo_chameleon.config.schema import ModelConfig


def forward(model: ModelConfig, vocab_size: int, layers: int | None = None) -> float:
    """Return the operations per token of a forward pass.

    Args:
        model: the model's shape.
        vocab_size: number of tokens in the vocabulary.
        layers: count only this many first layers, without the output layer. None: everything.
    """
    h, ffn = model.hidden_size, model.ffn_hidden_size or 4 * model.hidden_size
    groups = (model.num_query_groups or model.num_attention_heads) / model.num_attention_heads
    weights = (2 + 2 * groups) * h * h + (3 if model.gated_linear_unit else 2) * h * ffn
    layer = 2 * weights + 4 * model.seq_length * h
    output = 2 * h * vocab_size if layers is None else 0
    return (model.num_layers if layers is None else layers) * layer + output


def training(model: ModelConfig, vocab_size: int) -> float:
    """Return the operations per token of a forward and a backward pass."""
    return 3 * forward(model, vocab_size)
