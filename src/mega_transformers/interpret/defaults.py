"""Default precision of attributions. Imports nothing, so that help texts can name the numbers."""

STEPS = 32
"""Initial points of the quadrature."""
MAX_STEPS = 1024
"""The most points after doubling."""
TOLERANCE = 0.01
"""Accepted relative error of completeness."""
TOKENS_AT_ONCE = 4096
"""Most tokens, over all steps, whose activations are in memory at a time."""
