"""`mega convert`: what it prints, and a message for every mistake."""

from __future__ import annotations

import pathlib

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner, Result

from mega_transformers.cli import app

SAMPLE = pathlib.Path(__file__).parents[1] / "golden" / "ckpt" / "lm_prenorm_tied_chunk4.pt"


def mega(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["convert", *map(str, arguments)], env={"COLUMNS": "160"})


def refused(result: Result, *parts: str, code: int = 1) -> None:
    assert result.exit_code == code
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    message = " ".join(result.stderr.replace("│", " ").split())
    for part in parts:
        assert part in message


@pytest.fixture
def output(tmp_path) -> pathlib.Path:
    return tmp_path / "model"


def test_conversion(output, tmp_path):
    (tmp_path / "dict.txt").write_text("".join(f"w{index} 7\n" for index in range(26)))
    result = mega(SAMPLE, output, "--dictionary", tmp_path / "dict.txt")
    assert result.exit_code == 0, result.output
    shown = " ".join(result.stdout.split())
    for part in (
        "decoder.layers.*.mega_layer.move.delta",
        "mega.layers.*.mega_layer.ema_gate.damping_factor",
        "decoder.layers.*.… (other names)",
        "decoder.version",
        "fairseq's number of its own format",
        "the same as decoder.embed_tokens.weight",
        "4 rows of 1 to 11, padded",
        "Greatest deviation:",
        f"Wrote {output}: MegaForCausalLM in float32",
    ):
        assert part in shown
    assert "Comparing checksums" in result.stderr and "Evaluating the converted model" in result.stderr
    model = AutoModelForCausalLM.from_pretrained(output)
    with torch.no_grad():
        assert model(torch.tensor([[2, 5, 6]])).logits.shape == (1, 3, 30)
    generated = CliRunner().invoke(
        app, ["generate", "--model", str(output), "--greedy", "--max-new-tokens", "3", "w1"]
    )
    assert generated.exit_code == 0 and generated.stdout.startswith("w1")


def test_options(output):
    assert "Not checked (--no-verify)" in mega(SAMPLE, output, "--no-verify").stdout
    refused(mega(SAMPLE, output), "exists already", "--force")
    result = mega(SAMPLE, output, "--force", "--dtype", "bfloat16")
    assert result.exit_code == 0 and "in bfloat16" in result.stdout
    refused(mega(SAMPLE, output, "--force", "--weights", "ema"), "no moving average of its weights")


def test_mistakes(output, tmp_path):
    refused(mega(tmp_path / "none.pt", output), "there is no file or folder")
    refused(mega(tmp_path, output), "holds no checkpoint", "config.json", "model_args.pkl")
    refused(mega(SAMPLE, output, "--dtype", "int8"), "'int8' is not one of", code=2)
    refused(mega(SAMPLE, output, "--tokenizer", tmp_path), "no tokenizer can be loaded")
    refused(mega(SAMPLE), "Missing argument 'OUTPUT'", code=2)
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(SAMPLE.read_bytes()[:20_000])
    refused(mega(damaged, output), "damaged.pt is damaged or not a PyTorch file")
    assert not output.exists()
