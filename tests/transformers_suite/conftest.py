"""Gets transformers' own tests. This folder is collected only if named: `pytest tests/transformers_suite`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import upstream_tests

os.environ["HF_HUB_OFFLINE"] = "1"

MARKERS = (
    "accelerate_tests",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "flash_attn_test",
    "is_training_test",
    "order",
    "slow",
    "torch_compile_test",
)


def _is_asked_for(config: pytest.Config) -> bool:
    return any(Path(__file__).parent.name in argument for argument in config.args)


def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", f"{marker}: used by transformers' tests")
    if _is_asked_for(config):
        try:
            upstream_tests.make_importable()
        except upstream_tests.UnavailableError as error:
            raise pytest.UsageError(str(error)) from None


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    return None if _is_asked_for(config) else True
