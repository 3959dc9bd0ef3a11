"""A configuration keeps what is no field of it, as transformers' do, but says so where a field was misspelt."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers.utils import logging

from mega_transformers import MegaConfig
from mega_transformers.models.mega import configuration_mega

FOLDERS = sorted((Path(__file__).parents[1] / "golden" / "hf").glob("*/config.json"))


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(configuration_mega.logger, "warning", said.append)
    logging.set_verbosity_warning()
    return said


def test_misspelt_fields_are_told(warnings: list[str]) -> None:
    assert MegaConfig(hidden_sise=8).hidden_sise == 8
    assert warnings == ["MegaConfig has no field hidden_sise, so this value has no effect; did you mean hidden_size?"]


def test_fields_of_others_and_of_old_configurations_are_not(warnings: list[str]) -> None:
    MegaConfig(colour="red", tie_encoder_decoder=False, torchscript=False)
    MegaConfig.from_dict(MegaConfig().to_dict())
    for folder in FOLDERS:
        MegaConfig.from_pretrained(folder.parent)
    assert FOLDERS and not warnings
