"""A model's folder for others: for the model hub, with or without this package's code, and for transformers 4.40.2.

`folder` reads a folder and refuses a damaged one; `run` writes one for the hub, with a card from `card` and code from
`standalone`, and `hub` uploads it; `legacy` writes one for transformers 4.40.2.
"""

from ..convert.errors import ConversionError
from .errors import PublishError
from .legacy import LegacyReport, export_legacy
from .run import PublishReport, publish_folder

__all__ = ["ConversionError", "LegacyReport", "PublishError", "PublishReport", "export_legacy", "publish_folder"]
