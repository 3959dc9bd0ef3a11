"""What a user is told when a checkpoint cannot be converted."""


class ConversionError(Exception):
    """A checkpoint that is damaged, foreign or not what its settings say; the message is one for the user."""
