"""`mega text2text`: the model's own outputs, and a message for every mistake."""

from __future__ import annotations

import gzip
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from answers_of import refused
from tiny import SIZES
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, BartConfig, BartForConditionalGeneration
from typer.testing import CliRunner, Result

from mega_transformers import MegaForConditionalGeneration, MegaSeq2SeqConfig
from mega_transformers.cli import app
from mega_transformers.training.tokenizer import symbol_tokenizer, train_pair_tokenizer

WORDS = ["cab", "fade", "Decade", "a"]


def mega(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, ["text2text", *map(str, arguments)], input=stdin)


def lines(result: Result) -> list[str]:
    assert result.exit_code == 0, result.stderr
    return result.stdout.splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A Mega that turns words of the letters a to f into symbols."""
    path = tmp_path_factory.mktemp("pairs-model")
    tokenizer = symbol_tokenizer(["abcdef", "AH B K D EH F"], 16)
    torch.manual_seed(0)
    sides = {
        name: {
            **SIZES,
            "vocab_size": len(tokenizer),
            "relative_positional_bias": "simple",
            "max_positions": 24,
            "initializer_range": 0.7,
        }
        for name in ("encoder", "decoder")
    }
    model = MegaForConditionalGeneration(MegaSeq2SeqConfig(**sides))
    model.generation_config.update(max_new_tokens=6, num_beams=3)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def bart(tmp_path_factory) -> Path:
    """Another architecture, with a BPE."""
    path = tmp_path_factory.mktemp("bart")
    tokenizer = train_pair_tokenizer(["the cat sat on the mat", "el gato"] * 2, 265, 32)
    sizes = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=len(tokenizer),
        d_model=8,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        max_position_embeddings=32,
        init_std=0.7,
        **sizes,
        **ids,
        forced_eos_token_id=None,
    )
    BartForConditionalGeneration(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def outputs(folder: Path, text: str, **arguments: object) -> list[str]:
    """What `generate` makes of one text."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    ids = model.generate(**tokenizer(text, return_tensors="pt"), do_sample=False, **arguments)
    return tokenizer.batch_decode(ids, skip_special_tokens=True)


def test_outputs_are_those_of_generate(folder):
    expected = [outputs(folder, word.lower(), num_beams=3, max_new_tokens=6)[0] for word in WORDS]
    assert len(set(expected)) > 1
    assert lines(mega(*WORDS, "--model", folder)) == expected
    assert lines(mega("-m", folder, stdin="\n".join(WORDS) + "\n")) == expected
    assert lines(mega("cab", "-", "-m", folder, stdin="fade\n")) == expected[:2]


def test_options_go_to_generate(folder):
    greedy = [outputs(folder, word.lower(), num_beams=1, max_new_tokens=3)[0] for word in WORDS]
    assert lines(mega(*WORDS, "-m", folder, "--num-beams", 1, "-n", 3)) == greedy
    several = outputs(folder, "fade", num_beams=4, num_return_sequences=3, max_new_tokens=6, length_penalty=-2.0)
    options = ["--num-beams", 4, "--num-return-sequences", 3, "--length-penalty", -2]
    assert lines(mega("fade", "cab", "-m", folder, *options))[:4] == [*several, ""]
    answers = [json.loads(line) for line in lines(mega("fade", "cab", "-m", folder, *options, "--json"))]
    assert answers[0] == {"text": "fade", "outputs": several}
    assert answers[1]["text"] == "cab" and len(answers[1]["outputs"]) == 3


@pytest.mark.parametrize("packed", [False, True])
def test_many_lines_of_a_file_keep_their_order(folder, tmp_path, packed):
    words = [WORDS[index % 4] for index in range(600)]
    file = tmp_path / ("words.txt" + ".gz" * packed)
    text = "\n".join(words).encode()
    file.write_bytes(gzip.compress(text) if packed else text)
    answers = [json.loads(line) for line in lines(mega("-m", folder, "--file", file, "--num-beams", 1, "--json"))]
    assert [answer["text"] for answer in answers] == words
    single = {word: outputs(folder, word.lower(), num_beams=1, max_new_tokens=6) for word in WORDS}
    assert all(answer["outputs"] == single[answer["text"]] for answer in answers)


def test_any_sequence_to_sequence_model_works(bart):
    text = "the cat </s> sat"
    (got,) = lines(mega(text, "-m", bart, "-n", 8, "--num-beams", 2))
    tokenizer = AutoTokenizer.from_pretrained(bart)
    model = AutoModelForSeq2SeqLM.from_pretrained(bart).eval()
    inputs = tokenizer(text, return_tensors="pt", split_special_tokens=True)
    ids = model.generate(**inputs, num_beams=2, max_new_tokens=8)
    assert got == " ".join(tokenizer.decode(ids[0], skip_special_tokens=True).splitlines())


def test_characters_without_a_token_are_told(folder):
    result = mega("cab", "Café", "x", "-m", folder)
    assert result.exit_code == 0
    assert "Note: 'Café', and 1 more texts: the model has no token for some of the characters" in result.stderr
    assert len(result.stdout.splitlines()) == 3


def test_mistakes_are_told(folder, bart, tiny_checkpoint, tmp_path):
    refused(mega("cab", " ", "-m", folder), "' ' is empty; give a text", code=2)
    refused(mega("-m", folder, stdin="\n\n"), "stdin holds no text; expected one text per line")
    refused(mega("a" * 30, "-m", folder), "has 31 tokens, but the model takes at most 24; shorten it")
    refused(mega("a" * 200, "-m", bart), "but the model takes at most 32; shorten it")
    refused(mega("cab", "-m", folder, "-n", 24), "--max-new-tokens 24: the model writes at most 23 tokens")
    refused(
        mega("cab", "-m", folder, "--num-return-sequences", 4),
        "--num-return-sequences 4: 3 beams give no more than 3 outputs; give --num-beams 4 or more",
    )
    refused(mega("cab", "-m", folder, "--length-penalty", "inf"), "inf must be a finite number", code=2)
    refused(mega("cab", "-m", tiny_checkpoint), "use it with mega fill-mask")
    refused(mega("cab", "-m", tmp_path), "the folder holds no config.json")
    refused(mega("cab", "--file", tmp_path / "none.txt", "-m", folder), "holds the texts; leave out", code=2)
    refused(mega("--file", tmp_path / "none.txt", "-m", folder), "none.txt: cannot read")
    (tmp_path / "empty.txt").write_text("")
    refused(mega("--file", tmp_path / "empty.txt", "-m", folder), "empty.txt holds no text")
    (tmp_path / "gap.txt").write_text("cab\n \nfade\n")
    refused(mega("--file", tmp_path / "gap.txt", "-m", folder), "gap.txt: line 2 is empty")


def test_a_terminal_shows_short_texts_beside_their_outputs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = sys.modules["mega_transformers.cli.text2text"]
    expected = lines(mega("cab", "decade", "-m", folder))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    module.text2text(["cab", "decade"], model=str(folder), device="cpu")
    shown = re.sub(r"\x1b\[\d+m", "", capsys.readouterr().out).splitlines()
    assert shown == [f"cab     {expected[0]}", f"decade  {expected[1]}"]
    monkeypatch.setattr(module, "SHORT", 5)
    module.text2text(["cab", "decade"], model=str(folder), device="cpu")
    assert capsys.readouterr().out.splitlines() == expected
