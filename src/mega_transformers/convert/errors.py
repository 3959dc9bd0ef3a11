"""The error for checkpoints that cannot be converted."""


class ConversionError(Exception):
    """A checkpoint that is damaged, of an unknown format, or not what its settings say. The message is for users."""
