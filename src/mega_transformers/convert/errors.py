"""The error for checkpoints that cannot be converted."""


class ConversionError(Exception):
    """A checkpoint is damaged, of an unknown kind, or contradicts its settings. The message is for the user."""
