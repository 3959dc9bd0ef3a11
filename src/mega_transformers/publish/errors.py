"""The error for folders that cannot be published or exported."""

from ..convert.errors import ConversionError


class PublishError(ConversionError):
    """A folder that is damaged, or that cannot be published or exported as asked. The message is for users."""
