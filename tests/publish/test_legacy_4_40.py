"""Exported folders in transformers 4.40.2 itself: loaded whole, with the same numbers, words and tokens.

Needs an interpreter that has it, as in `tests/parity/test_old_transformers.py`: `MEGA_OLD_PYTHON=.../bin/python`.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from folders import inputs_of, outputs_of, save
from legacy_cases import CASES
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from mega_transformers.publish import export_legacy

TEXT = "The captain of the <mask> gave an order."


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny_checkpoint, tiny_causal_checkpoint):
    """Folder of every case -> the model it was made from; 4.40.2 has read it."""
    python = os.environ.get("MEGA_OLD_PYTHON")
    if not python:
        pytest.skip(
            "MEGA_OLD_PYTHON names no interpreter with transformers 4.40.2; make test makes one on Python 3.10 to 3.12"
        )
    root = tmp_path_factory.mktemp("exported")
    models = {name: make() for name, make in CASES.items()}
    sources = {name: save(model, root / f"{name}-source") for name, model in models.items()}
    sources |= {"with tokenizer": tiny_checkpoint, "causal with tokenizer": tiny_causal_checkpoint}
    models["with tokenizer"] = AutoModelForMaskedLM.from_pretrained(tiny_checkpoint)
    models["causal with tokenizer"] = AutoModelForCausalLM.from_pretrained(tiny_causal_checkpoint)
    found = {}
    for name, model in models.items():
        export_legacy(sources[name], root / name)
        inputs = inputs_of(model)
        if getattr(model.config, "use_chunking", False):
            inputs = {key: torch.cat([x, x[:, :1]], dim=1) for key, x in inputs.items()}  # 8 tokens
            inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
        save_file(inputs, root / name / "inputs.safetensors")
        found[name] = (root / name, model.eval(), inputs)
    listing = root / "cases.json"
    listing.write_text(json.dumps([str(folder) for folder, *_ in found.values()]))
    script = Path(__file__).with_name("old_reader.py")
    result = subprocess.run([python, str(script), str(listing)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    return found


@pytest.mark.parametrize("name", [*CASES, "with tokenizer", "causal with tokenizer"])
def test_same_numbers(name, exported):
    folder, model, inputs = exported[name]
    report = json.loads((folder / "report.json").read_text())
    missing = [key for key in report["missing_keys"] if not key.startswith("pooler.")]
    assert not missing and not report["unexpected_keys"] and not report["mismatched_keys"] and not report["error_msgs"]
    theirs, ours = load_file(folder / "outputs.safetensors"), outputs_of(model, inputs)
    if getattr(model, "pooler", True) is None:
        theirs.pop("pooler_output")  # of a pooler that nobody trained
    generated = theirs.pop("generated", None)
    assert theirs.keys() == ours.keys() - {"cache", "past_key_values"}
    for key, expected in ours.items():
        actual = theirs[key]
        mask = inputs["attention_mask"].bool()
        if expected.shape[:2] == mask.shape:
            actual, expected = actual[mask], expected[mask]
        assert float((actual - expected).abs().max() / (1 + expected.abs().max())) <= 2e-5, key
    if generated is not None:
        again = model.generate(inputs["input_ids"][:1], max_new_tokens=6, do_sample=False)
        assert torch.equal(generated, again)


@pytest.mark.parametrize("name", ["with tokenizer", "causal with tokenizer"])
def test_same_tokens(name, exported, tiny_checkpoint, tiny_causal_checkpoint):
    folder, *_ = exported[name]
    report = json.loads((folder / "report.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint if name == "with tokenizer" else tiny_causal_checkpoint)
    ids = tokenizer(TEXT)["input_ids"]
    assert report["tokens"] == ids and tokenizer.mask_token_id in ids
    assert report["mask_token_id"] == tokenizer.mask_token_id
    assert report["decoded"] == tokenizer.decode(ids, skip_special_tokens=True)
