"""sentence-transformers over a Mega checkpoint, as users of the 16k embedding model have it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from mega_transformers import MegaConfig, MegaModel

SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer

TEXTS = [
    "A whale.",
    "The captain of the ship gave an order, and the sailors obeyed.",
    "",
    "It is a truth universally acknowledged that a speech must end. " * 6,
    "The president of the United States gave a speech. " * 2,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: Path) -> Path:
    """A small relative of mega-small-embed-synthSTS-16384-v1: chunks, simple bias, post-norm, token types."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_folder, config=MegaConfig())
    config = MegaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=3,
        intermediate_size=48,
        nffn_hidden_size=48,
        shared_representation_size=16,
        ema_projection_size=4,
        use_chunking=True,
        chunk_size=16,
        relative_positional_bias="simple",
        normalization_type="scalenorm",
        normalize_before_mega=False,
        normalize_before_ffn=False,
        add_token_type_embeddings=True,
        max_positions=512,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("embedder")
    MegaModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def published(folder: Path, target: Path) -> Path:
    """The checkpoint in the layout that sentence-transformers wrote when the public model was made."""
    shutil.copytree(folder, target)
    modules = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling")]
    files = {
        "modules.json": [
            {"idx": int(name), "name": name, "path": path, "type": f"sentence_transformers.models.{kind}"}
            for name, path, kind in modules
        ],
        "sentence_bert_config.json": {"max_seq_length": 512, "do_lower_case": False},
        "1_Pooling/config.json": {
            "word_embedding_dimension": 32,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    }
    (target / "1_Pooling").mkdir()
    for name, content in files.items():
        (target / name).write_text(json.dumps(content))
    return target


@pytest.fixture(scope="module")
def model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> SentenceTransformer:
    return SentenceTransformer(str(published(folder, tmp_path_factory.mktemp("published") / "model")), device="cpu")


def encode(model: SentenceTransformer, texts: list[str], batch_size: int) -> torch.Tensor:
    return model.encode(texts, convert_to_tensor=True, batch_size=batch_size)


def test_batches_give_the_vectors_of_one_by_one(model: SentenceTransformer) -> None:
    lengths = {len(model.tokenizer(text)["input_ids"]) for text in TEXTS}
    assert len(lengths) == len(TEXTS) and max(lengths) > 64, "texts of different lengths, over several chunks"
    batch, single = encode(model, TEXTS, len(TEXTS)), encode(model, TEXTS, 1)
    assert batch.shape == (len(TEXTS), 32)
    assert torch.pdist(batch).min() > 1e-2, "the texts have vectors of their own"
    torch.testing.assert_close(batch, single, rtol=1e-5, atol=1e-5)


def test_vectors_are_the_mean_over_real_tokens(model: SentenceTransformer, folder: Path) -> None:
    base = MegaModel.from_pretrained(folder).eval()
    ids = AutoTokenizer.from_pretrained(folder)(TEXTS[1], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = base(ids).last_hidden_state.mean(dim=1)
    torch.testing.assert_close(encode(model, [TEXTS[1]], 1), expected, rtol=1e-5, atol=1e-5)


def test_saved_folders_and_bare_checkpoints_load(model: SentenceTransformer, folder: Path, tmp_path: Path) -> None:
    model.save(str(tmp_path))
    for path in (tmp_path, folder):  # over a bare checkpoint, mean pooling is the default
        loaded = SentenceTransformer(str(path), device="cpu")
        torch.testing.assert_close(encode(loaded, TEXTS, 2), encode(model, TEXTS, 1), rtol=1e-5, atol=1e-5)
