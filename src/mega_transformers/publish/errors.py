"""The error for folders that cannot be published or exported."""

from ..convert.errors import ConversionError


class PublishError(ConversionError):
    """A folder is damaged, or cannot be published or exported. The message is for the user."""
