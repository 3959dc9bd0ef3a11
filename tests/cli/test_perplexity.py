"""`mega perplexity`: numbers of a plain forward pass, for files and stdin, and a message for every mistake."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner, Result

from mega_transformers import MegaConfig, MegaForCausalLM
from mega_transformers.cli import app

TEXT = "The captain gave an order .\n\n  The whale had seen the ship .  \n" * 10
LINES = [line.strip() for line in TEXT.split("\n") if line.strip()]


def mega(*arguments: object, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(app, ["perplexity", *map(str, arguments)], input=stdin, env={"COLUMNS": "200"})


def refused(result: Result, *parts: str, code: int = 1) -> None:
    assert result.exit_code == code
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    message = " ".join(result.stderr.replace("│", " ").split())
    for part in parts:
        assert part in message


@pytest.fixture(scope="session")
def causal_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_folder, config=MegaConfig())
    config = MegaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        intermediate_size=48,
        nffn_hidden_size=48,
        shared_representation_size=16,
        ema_projection_size=4,
        is_decoder=True,
        bidirectional=False,
        use_chunking=True,
        chunk_size=16,
        initializer_range=0.5,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("causal")
    MegaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def expected_nats(folder: Path, lines: list[str]) -> tuple[float, int]:
    """Of one forward pass over all lines, each as `<s> line </s>`."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([[token for line in lines for token in tokenizer(line).input_ids]])
    assert ids[0, 0] == 0 and ids[0, -1] == 2
    with torch.no_grad():
        logits = MegaForCausalLM.from_pretrained(folder).eval()(ids).logits
    return F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum").item(), ids.shape[1] - 1


def test_full_mode_is_one_forward_pass(causal_checkpoint: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "numbers.json"
    result = mega(text, "--model", causal_checkpoint, "--piece", 13, "--json", out)
    assert result.exit_code == 0, result.output
    numbers = json.loads(out.read_text())
    assert numbers["mode"] == "full" and numbers["piece"] == 13 and "window" not in numbers
    score = numbers["texts"][str(text)]
    nats, tokens = expected_nats(causal_checkpoint, LINES)
    characters, words = sum(map(len, LINES)), sum(len(line.split()) for line in LINES)
    assert score["tokens"] == tokens
    assert score["cross_entropy"] == pytest.approx(nats / tokens, rel=1e-5)
    assert score["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert score["bits_per_character"] == pytest.approx(nats / math.log(2) / characters, rel=1e-5)
    assert score["word_perplexity"] == pytest.approx(math.exp(nats / words), rel=1e-3)
    for shown in (f"{score['cross_entropy']:.4f}", f"{score['bits_per_character']:.4f}", "tokens per second"):
        assert shown in result.stdout
    assert "state carried over the whole text" in result.stdout
    assert "uncleaned" not in result.stdout


def test_modes(causal_checkpoint: Path, text: Path, tmp_path: Path) -> None:
    def nats(*arguments: object) -> float:
        out = tmp_path / "numbers.json"
        result = mega(text, "-m", causal_checkpoint, *arguments, "--json", out)
        assert result.exit_code == 0, result.output
        return json.loads(out.read_text())["texts"][str(text)]["cross_entropy"]

    chunk = nats("--mode", "chunk", "--window", 48)
    assert chunk == nats("--mode", "sliding", "--window", 48, "--stride", 48)
    assert chunk != nats("--mode", "sliding", "--window", 48)
    assert nats("--mode", "chunk", "--window", 10_000) == pytest.approx(
        nats("--mode", "full", "--piece", 50), rel=1e-5
    )


def test_files_stdin_gzip_and_all_together(causal_checkpoint: Path, text: Path, tmp_path: Path) -> None:
    packed, out = tmp_path / "packed.txt.gz", tmp_path / "numbers.json"
    packed.write_bytes(gzip.compress(TEXT.encode()))
    result = mega(text, "-", packed, "-m", causal_checkpoint, "--json", out, stdin=TEXT)
    assert result.exit_code == 0, result.output
    scores = json.loads(out.read_text())["texts"]
    assert list(scores) == [str(text), "stdin", str(packed), "together"]
    assert len({score["cross_entropy"] for score in scores.values()}) == 1
    assert scores["together"]["tokens"] == 3 * scores["stdin"]["tokens"]
    assert scores["together"]["words"] == 3 * scores["stdin"]["words"]


def test_cleaned_text_is_counted_both_ways(causal_checkpoint: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "numbers.json"
    result = mega(text, "-m", causal_checkpoint, "--clean", "wikitext", "--documents", "whole", "--json", out)
    assert result.exit_code == 0, result.output
    assert "per uncleaned word" in result.stdout
    score = json.loads(out.read_text())["texts"][str(text)]
    assert score["raw_words"] == len(TEXT.split()) == score["words"] + 20  # the full stops


def test_a_text_without_blanks_is_valid_json(causal_checkpoint: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "one.txt", tmp_path / "numbers.json"
    path.write_text("x" * 3000)
    result = mega(path, "-m", causal_checkpoint, "--json", out)
    assert result.exit_code == 0, result.output
    assert "inf" in result.stdout
    assert "Infinity" not in out.read_text()
    assert json.loads(out.read_text())["texts"][str(path)]["word_perplexity"] is None


def test_other_models(tiny_tokenizer_folder: Path, text: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_folder, config=MegaConfig())
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    result = mega(text, "-m", tmp_path / "gpt2", "--mode", "sliding", "--window", 64)
    assert result.exit_code == 0, result.output
    refused(mega(text, "-m", tmp_path / "gpt2"), "the model takes at most 64", "sliding or chunk")
    refused(mega(text, "-m", tmp_path / "gpt2", "--mode", "chunk"), "window=512 is above the 64 tokens")


def test_masked_models_are_refused(tiny_checkpoint: Path, text: Path, tmp_path: Path) -> None:
    refused(mega(text, "-m", tiny_checkpoint), "masked language model (MegaForMaskedLM)", "mega evaluate")
    config = BertConfig(vocab_size=360, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    config.initializer_range = 0.5
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(tmp_path / "bert")
    refused(mega(text, "-m", tmp_path / "bert"), "masked language model (BertForMaskedLM)")
    saved = json.loads((tmp_path / "bert" / "config.json").read_text())
    del saved["architectures"]
    (tmp_path / "bert" / "config.json").write_text(json.dumps(saved))
    refused(mega(text, "-m", tmp_path / "bert"), "sees the tokens that it predicts")


def test_mistakes_are_one_message(causal_checkpoint: Path, text: Path, tmp_path: Path) -> None:
    model = ["-m", causal_checkpoint]
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text(" \n")
    binary.write_bytes(b"\xff\xfe\xfa")
    refused(mega(tmp_path / "none.txt", *model), "there is no file", "none.txt")
    refused(mega(empty, *model), "empty.txt holds no text")
    refused(mega(binary, *model), "cannot read", "binary.txt")
    refused(mega("-", *model, stdin=""), "stdin holds no text")
    refused(mega("-", *model, stdin=b"\xff\xfe\xfa"), "stdin is not valid UTF-8")
    refused(mega("-", "-", *model, stdin=TEXT), "can be given only once", code=2)
    refused(mega(), "Missing argument", code=2)
    refused(mega(text, *model, "--mode", "whole"), "mode='whole' is unknown; the known modes are full, chunk, sliding")
    refused(mega(text, *model, "--mode", "sliding", "--window", 8, "--stride", 9), "stride=9 is above window=8")
    refused(mega(text, *model, "--piece", 0), "piece=0 must be at least 1")
    refused(mega(text, *model, "--window", 8), "--window 8 is for --mode chunk and sliding", "leave it out")
    refused(mega(text, *model, "--mode", "chunk", "--stride", 8), "--stride 8 is for --mode sliding")
    refused(mega(text, *model, "--clean", "soap"), "--clean soap is unknown")
    refused(mega(text, *model, "--documents", "pages"), "--documents pages is unknown")
    refused(mega(text, *model, "--json", tmp_path / "no" / "x.json"), "there is no folder")
    refused(mega(text, *model, "--json", tmp_path), "this is a folder; name a file")
    refused(mega(text, "-m", tmp_path / "nowhere"), "there is no such folder")
    refused(mega(text, "-m", tmp_path), "no config.json")
