"""What a user is told when a checkpoint cannot be converted."""


class ConversionError(Exception):
    """A checkpoint that is damaged, of an unknown format, or not what its settings say. The message is for users."""
