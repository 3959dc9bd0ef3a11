"""Which tokenizer `AutoTokenizer` gives for a folder with `model_type: mega`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, GPTNeoXTokenizer, RobertaTokenizer

from mega_transformers import MegaConfig

ROBERTA_ORDER = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
CORPUS = ["the whale swam under the ship", "the captain of the ship saw the whale"] * 8


def folder_with(path: Path, *files: Path, **json_files: dict) -> Path:
    """A Mega folder that holds copies of `files`, and JSON files by name."""
    path.mkdir()
    MegaConfig().save_pretrained(path)
    for file in files:
        shutil.copy(file, path)
    for name, content in json_files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


@pytest.fixture
def bpe(tiny_tokenizer_folder: Path) -> list[Path]:
    return [tiny_tokenizer_folder / "vocab.json", tiny_tokenizer_folder / "merges.txt"]


@pytest.fixture(scope="module")
def neox_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.json as GPT-NeoX's: byte-level BPE with NFC, none of RoBERTa's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    path = tmp_path_factory.mktemp("neox") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize("named", [None, "RobertaTokenizer", "RobertaTokenizerFast"])
@pytest.mark.parametrize("kind", ["vocab and merges", "tokenizer.json"])
def test_robertas_files_give_robertas_tokenizer(tmp_path: Path, bpe: list[Path], kind: str, named: str | None) -> None:
    files = bpe
    if kind == "tokenizer.json":
        AutoTokenizer.from_pretrained(folder_with(tmp_path / "source", *bpe)).save_pretrained(tmp_path / "saved")
        files = [tmp_path / "saved" / "tokenizer.json"]
    configs = {} if named is None else {"tokenizer_config": {"tokenizer_class": named}}
    tokenizer = AutoTokenizer.from_pretrained(folder_with(tmp_path / "model", *files, **configs))
    assert type(tokenizer) is RobertaTokenizer
    assert tokenizer.convert_ids_to_tokens(range(5)) == ROBERTA_ORDER
    text = "The captain of the ship."
    ids = tokenizer(text)["input_ids"]
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(ids) < 2 + len(text)  # the merges are used


def test_mask_swallows_the_space_before_it(tmp_path: Path, bpe: list[Path]) -> None:
    """As RoBERTa's tokenizers of transformers 4 did; without that a lone space stands before every mask."""
    tokenizer = AutoTokenizer.from_pretrained(folder_with(tmp_path / "model", *bpe))
    tokenizer.save_pretrained(tmp_path / "again")
    MegaConfig().save_pretrained(tmp_path / "again")
    for some in (tokenizer, AutoTokenizer.from_pretrained(tmp_path / "again")):
        with_mask, without = some("The <mask> of")["input_ids"], some("The of")["input_ids"]
        assert [i for i in with_mask if i != some.mask_token_id] == without


def test_a_mask_that_the_folder_describes_is_left_alone(tmp_path: Path, bpe: list[Path]) -> None:
    described = {
        "mask_token": {"__type": "AddedToken", "content": "<mask>", "lstrip": False, "rstrip": False, "special": True}
    }
    for file in ("tokenizer_config", "special_tokens_map"):
        tokenizer = AutoTokenizer.from_pretrained(folder_with(tmp_path / file, *bpe, **{file: described}))
        assert len(tokenizer("The <mask>")["input_ids"]) == len(tokenizer("The<mask>")["input_ids"]) + 1


@pytest.mark.parametrize("named", [None, "GPTNeoXTokenizerFast", "GPTNeoXTokenizer", "PreTrainedTokenizerFast"])
def test_another_kind_of_tokenizer_is_kept(tmp_path: Path, neox_json: Path, named: str | None) -> None:
    configs = {"tokenizer_config": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}}
    if named:
        configs["tokenizer_config"]["tokenizer_class"] = named
    tokenizer = AutoTokenizer.from_pretrained(folder_with(tmp_path / "model", neox_json, **configs))
    if named and named.startswith("GPTNeoX"):
        assert type(tokenizer) is GPTNeoXTokenizer
    raw = Tokenizer.from_file(str(neox_json))
    assert len(tokenizer) == raw.get_vocab_size()
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 0)
    for text in ("the captain saw the whale", "cafe\u0301 \u00e9"):
        assert tokenizer(text)["input_ids"] == raw.encode(text).ids


@pytest.mark.parametrize(
    ("present", "missing"),
    [([], "vocab.json and merges.txt missing"), ([0], "merges.txt missing"), ([1], "vocab.json missing")],
)
def test_missing_files_are_named(tmp_path: Path, bpe: list[Path], present: list[int], missing: str) -> None:
    folder = folder_with(tmp_path / "model", *(bpe[index] for index in present))
    with pytest.raises(OSError, match=r"tokenizer\.json, or vocab\.json and merges\.txt") as error:
        AutoTokenizer.from_pretrained(folder)
    assert missing in str(error.value)
    assert str(folder) in str(error.value)


def test_what_is_saved_names_robertas_class(tmp_path: Path, bpe: list[Path]) -> None:
    """So that a folder saved here loads without this package."""
    AutoTokenizer.from_pretrained(folder_with(tmp_path / "model", *bpe)).save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "RobertaTokenizer"
