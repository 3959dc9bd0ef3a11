"""Which releases of transformers this package is tested with, from the first to the last."""

OLDEST_TESTED = "5.18.0"
NEWEST_TESTED = "5.24.0"
