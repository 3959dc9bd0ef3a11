"""`mega export-legacy`: what it prints, and what it refuses."""

from __future__ import annotations

import json

import torch
from typer.testing import CliRunner, Result

from mega_transformers import MegaConfig, MegaForMaskedLM
from mega_transformers.assets import DEFAULT_MODEL
from mega_transformers.cli import app


def mega(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["export-legacy", *map(str, arguments)], env={"COLUMNS": "160"})


def test_export(tmp_path):
    output = tmp_path / "output"
    result = mega(DEFAULT_MODEL, output)
    assert result.exit_code == 0, result.output
    for part in ("MegaForMaskedLM", "model.safetensors", "Greatest deviation from the model: 0.0e+00", "Next, with"):
        assert part in " ".join(result.stdout.split())
    assert "chunk_size=256 only" in result.stderr and "half precision" in result.stderr
    again = mega(DEFAULT_MODEL, output)
    assert again.exit_code == 1 and "--force" in again.stderr and again.stdout == ""


def test_changes_and_refusals(tmp_path, tiny_checkpoint):
    fields = json.loads((tiny_checkpoint / "config.json").read_text())
    torch.manual_seed(0)
    for name, more in (("scaled", {"scale_embeddings": True}), ("normed", {"final_norm": True})):
        MegaForMaskedLM(MegaConfig(**{**fields, **more})).save_pretrained(tmp_path / name)
    result = mega(tmp_path / "scaled", tmp_path / "output")
    assert result.exit_code == 0 and "Changed: scale_embeddings=True" in result.stdout
    refused = mega(tmp_path / "normed", tmp_path / "refused")
    assert refused.exit_code == 1 and refused.stdout == "" and not (tmp_path / "refused").exists()
    assert "transformers 4.40.2 lacks final_norm=True" in " ".join(refused.stderr.split())
