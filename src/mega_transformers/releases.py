"""The range of tested transformers releases."""

from __future__ import annotations

import warnings
from importlib.metadata import PackageNotFoundError, version

OLDEST_TESTED = "5.18.0"
NEWEST_TESTED = "5.24.0"


def warn_of_untested_release() -> None:
    """Warns if the installed transformers is not a tested release, so that nothing is silently wrong."""
    from packaging.version import Version

    try:
        installed = version("transformers")
    except PackageNotFoundError:  # the import that needs it reports that
        return
    if not Version(OLDEST_TESTED) <= Version(installed) <= Version(NEWEST_TESTED):
        warnings.warn(
            f"transformers {installed} is installed, but mega-transformers was tested with {OLDEST_TESTED} to "
            f"{NEWEST_TESTED}; run `mega doctor` to see whether it computes the right numbers.",
            stacklevel=3,
        )
