"""The sizes of small models, for tests that need no particular ones."""

from mega_transformers import MegaConfig

SIZES = {
    "vocab_size": 31,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "intermediate_size": 12,
    "nffn_hidden_size": 8,
    "shared_representation_size": 4,
    "ema_projection_size": 2,
}
CAUSAL = {"is_decoder": True, "bidirectional": False}


def tiny_config(**fields) -> MegaConfig:
    """A small configuration; `fields` go before its own."""
    return MegaConfig(**{**SIZES, **fields})
