"""The modules of a Mega block, batch first, with the parameter names of transformers 4.40.2."""

from .adaptive import MegaAdaptiveEmbedding, MegaAdaptiveSoftmax, MegaMatrix
from .block import MegaBlock
from .dropout import MegaDropout
from .ema import MegaMultiDimensionDampedEma
from .feed_forward import MegaNormalizedFeedForwardNetwork
from .gated_attention import MegaMovingAverageGatedAttention
from .gated_cross_attention import MegaGatedCrossAttention
from .norms import MegaRMSNorm, MegaScaleNorm, MegaSequenceNorm
from .position_bias import MegaRotaryRelativePositionalBias, MegaSimpleRelativePositionalBias

__all__ = [
    "MegaAdaptiveEmbedding",
    "MegaAdaptiveSoftmax",
    "MegaBlock",
    "MegaDropout",
    "MegaGatedCrossAttention",
    "MegaMatrix",
    "MegaMovingAverageGatedAttention",
    "MegaMultiDimensionDampedEma",
    "MegaNormalizedFeedForwardNetwork",
    "MegaRMSNorm",
    "MegaRotaryRelativePositionalBias",
    "MegaScaleNorm",
    "MegaSequenceNorm",
    "MegaSimpleRelativePositionalBias",
]
