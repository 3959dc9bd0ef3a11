"""What a user is told when a folder cannot be published or exported."""

from ..convert.errors import ConversionError


class PublishError(ConversionError):
    """A folder that is damaged or cannot be what is asked for; the message is one for the user."""
