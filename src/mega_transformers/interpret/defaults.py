"""How exactly attributions are computed, unless told otherwise. Imports nothing, so that command lines may say it."""

STEPS = 32
"""Points of the quadrature to begin with."""
MAX_STEPS = 1024
"""Points up to which they are doubled."""
TOLERANCE = 0.01
"""Relative error of completeness that is good enough."""
TOKENS_AT_ONCE = 4096
"""Tokens, over all steps computed together, whose activations are in memory at a time."""
