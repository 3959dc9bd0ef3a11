"""Small models behind the page."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from mega_transformers import MegaConfig, MegaForSequenceClassification
from mega_transformers.demo.models import Served, load_models


@pytest.fixture(scope="session")
def tiny_classifier(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """A saved MegaForSequenceClassification of three labels, with random weights."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    torch.manual_seed(0)
    config = MegaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        intermediate_size=16,
        nffn_hidden_size=16,
        shared_representation_size=8,
        max_positions=64,
        initializer_range=0.5,
        id2label={0: "sea", 1: "land", 2: "<b>air</b>"},
        label2id={"sea": 0, "land": 1, "<b>air</b>": 2},
    )
    folder = tmp_path_factory.mktemp("classifier")
    MegaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def served(tiny_checkpoint: Path, tiny_causal_checkpoint: Path, tiny_classifier: Path) -> list[Served]:
    """A model of each kind: masked, causal, words to phonemes, classifier."""
    names = [str(tiny_checkpoint), str(tiny_causal_checkpoint), "mega-g2p-1m", str(tiny_classifier)]
    return load_models(names, "cpu", "auto")


@pytest.fixture
def masked(served: list[Served]) -> Served:
    return served[0]


@pytest.fixture
def causal(served: list[Served]) -> Served:
    return served[1]


@pytest.fixture
def words(served: list[Served]) -> Served:
    return served[2]


@pytest.fixture
def classifier(served: list[Served]) -> Served:
    return served[3]
