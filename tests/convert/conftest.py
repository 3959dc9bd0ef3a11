"""Conversions without progress bars of other libraries."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from transformers.utils import logging


@pytest.fixture(autouse=True, scope="session")
def _quiet() -> Iterator[None]:
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()
