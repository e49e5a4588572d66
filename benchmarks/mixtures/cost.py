"""Floating point operations of models, by the field's rule: six a weight and token, and attention.

Forward is a third of training. Multiplications with embeddings of tokens and positions are none.
"""

from nemo_chameleon.config.schema import ModelConfig


def forward(model: ModelConfig, vocab_size: int, layers: int | None = None) -> float:
    """Operations a token: through all layers and the output, or the first `layers` alone."""
    h, ffn = model.hidden_size, model.ffn_hidden_size or 4 * model.hidden_size
    groups = (model.num_query_groups or model.num_attention_heads) / model.num_attention_heads
    weights = (2 + 2 * groups) * h * h + (3 if model.gated_linear_unit else 2) * h * ffn
    layer = 2 * weights + 4 * model.seq_length * h
    output = 2 * h * vocab_size if layers is None else 0
    return (model.num_layers if layers is None else layers) * layer + output


def training(model: ModelConfig, vocab_size: int) -> float:
    """Operations a token, forward and backward."""
    return 3 * forward(model, vocab_size)
