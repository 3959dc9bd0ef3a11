"""What several test folders need: a small byte-level BPE, and small masked and causal Megas, as saved folders."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may depend on a model hub
# nor write to the home directory; datasets reads this when it is imported, so a fixture would come too late
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="datasets-")
atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)

SENTENCES = [
    "The president of the United States gave a speech.",
    "The captain of the ship gave an order, and the sailors obeyed.",
    "A whale swam under the ship; nobody had seen the whale before.",
    "It is a truth universally acknowledged that a speech must end.",
]


@pytest.fixture(scope="session", autouse=True)
def _verbosity() -> int:
    """What it is before any fixture of a session, which may run commands too."""
    from transformers.utils import logging

    return logging.get_verbosity()


@pytest.fixture(autouse=True)
def _same_verbosity(_verbosity: int) -> Iterator[None]:
    """Commands silence transformers for the process they run in; here that process runs other tests too."""
    from transformers.utils import logging

    logging.set_verbosity(_verbosity)
    yield
    logging.set_verbosity(_verbosity)


@pytest.fixture(scope="session")
def tiny_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with vocab.json and merges.txt only, RoBERTa's special tokens first."""
    from tokenizers import ByteLevelBPETokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(SENTENCES * 4, vocab_size=360, special_tokens=special, show_progress=False)
    tokenizer.save_model(str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: Path) -> Path:
    """A saved MegaForMaskedLM with random weights and its tokenizer."""
    import torch
    from transformers import AutoTokenizer

    from mega_transformers import MegaConfig, MegaForMaskedLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_folder, config=MegaConfig())
    config = MegaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        intermediate_size=48,
        nffn_hidden_size=48,
        shared_representation_size=16,
        ema_projection_size=4,
        max_positions=128,
        initializer_range=0.5,  # candidates that differ in probability
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    MegaForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_causal_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved MegaForCausalLM with random weights and chunks, and a tokenizer that does not close a text."""
    import torch

    from mega_transformers import MegaConfig, MegaForCausalLM
    from mega_transformers.training.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(SENTENCES * 4, vocab_size=360, max_length=64, add_eos=False)
    config = MegaConfig(
        vocab_size=len(tokenizer),
        is_decoder=True,
        bidirectional=False,
        use_chunking=True,
        chunk_size=8,
        hidden_size=32,
        num_hidden_layers=2,
        intermediate_size=48,
        nffn_hidden_size=48,
        shared_representation_size=16,
        ema_projection_size=4,
        max_positions=128,
        initializer_range=0.5,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("causal-checkpoint")
    MegaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
