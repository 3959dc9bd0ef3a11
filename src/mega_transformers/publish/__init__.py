"""Prepares a model's folder for the model hub, with or without this package's code.

`folder` reads a folder and refuses a damaged one; `run` writes one for the hub, with a card from `card` and code from
`standalone`, and `hub` uploads it.
"""

from ..convert.errors import ConversionError
from .errors import PublishError
from .publication import PublishReport, publish_folder

__all__ = ["ConversionError", "PublishError", "PublishReport", "publish_folder"]
