"""Folders with their modelling code: complete, and of use where this package is not installed."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
import transformers
from folders import encoder_decoder, inputs_of, make, save
from safetensors.torch import load_file, save_file

import mega_transformers
from mega_transformers.publish import PublishError, publish_folder
from mega_transformers.publish.standalone import auto_map, flat, modules_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB_ID = "someone/prose.v1"
TEXT = "The captain of the <mask> gave an order."
VALUES = {"input_type": "values", "classifier_pooling": "mean", "classifier_head": "blocks"}
MODELS = {
    "MegaModel": {},
    "MegaForMaskedLM": {"normalization_type": "layernorm"},
    "MegaForCausalLM": {"use_chunking": True, "chunk_size": 4},
    "MegaForConditionalGeneration": {"final_norm": True},
    "MegaForSequenceClassification": {"num_labels": 3},
    "MegaForTokenClassification": {"attention_activation": "laplace"},
    "MegaForQuestionAnswering": {},
    "MegaForMultipleChoice": {},
    "MegaForAudioClassification": VALUES,
    "MegaForSequencePairClassification": {},
}


@pytest.fixture(scope="module")
def published(tmp_path_factory, tiny_checkpoint, tiny_causal_checkpoint) -> Path:
    """A folder with a published folder of every class, a hub's cache, and what `plain_user.py` is to do."""
    root = tmp_path_factory.mktemp("published")
    folders = []
    for name, fields in MODELS.items():
        model = make(name, **fields)
        folder = root / name.lower()
        publish_folder(save(model, root / f"{name}-source"), folder, with_code=True)
        save_file(inputs_of(model), folder / "inputs.safetensors")
        folders.append(str(folder))
    publish_folder(tiny_checkpoint, root / "masked", with_code=True)
    publish_folder(tiny_causal_checkpoint, root / "causal", with_code=True)
    repository = root / "hub" / f"models--{HUB_ID.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    shutil.copytree(root / "causal", repository / "snapshots" / COMMIT)
    work = {"folders": folders, "masked": str(root / "masked"), "causal": str(root / "causal")}
    (root / "work.json").write_text(json.dumps({**work, "hub_id": HUB_ID, "text": TEXT}))
    return root


def run_plain(root: Path, python: str, *options: str) -> dict:
    """Runs `plain_user.py`; returns its report."""
    (root / "plain.json").unlink(missing_ok=True)
    shutil.rmtree(root / "again", ignore_errors=True)
    caches = {"HF_MODULES_CACHE": str(root / f"modules{len(options)}"), "HF_HUB_CACHE": str(root / "hub")}
    script = Path(__file__).with_name("plain_user.py")
    result = subprocess.run(
        [python, str(script), str(root / "work.json"), *options],
        env={**os.environ, **caches, "HF_HUB_OFFLINE": "1"},
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads((root / "plain.json").read_text())


def check_plain(root: Path, report: dict) -> None:
    """Without the package, everything is as it is with it."""
    assert not report["ours"]
    assert all(module.startswith("transformers_modules.") for module in [*report["modules"], report["from_hub"]])
    assert COMMIT in report["from_hub"]
    for name in MODELS:
        folder = root / name.lower()
        model = getattr(mega_transformers, name).from_pretrained(folder).eval()
        inputs, found = load_file(folder / "inputs.safetensors"), load_file(folder / "outputs.safetensors")
        with torch.no_grad():
            expected = {key: x for key, x in model(**inputs).items() if torch.is_tensor(x)}
        if model.can_generate():
            prompt = {"input_ids": inputs["input_ids"][:1], "max_new_tokens": 5, "do_sample": False}
            expected |= {"greedy": model.generate(**prompt), "beams": model.generate(**prompt, num_beams=2)}
            expected["static"] = expected["greedy"]
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-6, atol=1e-6)
    fill = transformers.pipeline("fill-mask", model=str(root / "masked"))
    assert report["filled"] == [each["token"] for each in fill(TEXT)]
    write = transformers.pipeline("text-generation", model=str(root / "causal"))
    assert report["written"] == write("The ship", max_new_tokens=5, do_sample=False)[0]["generated_text"]
    assert report["again"] and report["other_head"] == "MegaForTokenClassification"


def test_without_the_package(published):
    check_plain(published, run_plain(published, sys.executable, "--block"))


@pytest.mark.skipif(not os.environ.get("MEGA_SLOW"), reason="MEGA_SLOW=1 makes a virtual environment")
def test_in_an_environment_without_the_package(published):
    """All that is installed here, but this package."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(published / "venv")], check=True)
    linked = published / "linked"
    linked.mkdir()
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "mega" not in path.name.lower():
            (linked / path.name).symlink_to(path)
    (site,) = (published / "venv" / "lib").glob("python*/site-packages")
    (site / "linked.pth").write_text(str(linked))
    python = str(published / "venv" / "bin" / "python")
    missing = subprocess.run([python, "-c", "import mega_transformers"], capture_output=True, text=True)
    assert "No module named 'mega_transformers'" in missing.stderr
    check_plain(published, run_plain(published, python))


def test_registered_classes_win(published):
    """Where the package is imported, its own code runs, whatever is trusted."""
    for name, auto in (
        ("masked", "AutoModelForMaskedLM"),
        ("causal", "AutoModelForCausalLM"),
        ("megaforconditionalgeneration", "AutoModelForSeq2SeqLM"),
    ):
        config = transformers.AutoConfig.from_pretrained(published / name, trust_remote_code=True)
        model = getattr(transformers, auto).from_pretrained(published / name, trust_remote_code=True)
        assert type(model) is getattr(mega_transformers, type(model).__name__)
        assert type(config) is type(model.config) and type(config).__module__.startswith("mega_transformers.")


@pytest.mark.parametrize("config", [mega_transformers.MegaConfig(), mega_transformers.MegaSeq2SeqConfig()])
def test_files_are_the_sources(config):
    """Each file is a module of this package, but for its relative imports, which are of other files."""
    files, package = modules_of(config), Path(mega_transformers.__file__).parent
    for name, text in files.items():
        assert "/" not in name and name.removesuffix(".py").isidentifier()
        path = re.match(r"# mega_transformers/(\S+) of mega-transformers", text)
        assert path is not None
        source = (package / path.group(1)).read_text(encoding="utf-8").splitlines()
        lines = text.splitlines()[1 : len(source) + 1]
        for line, original in zip(lines, source):
            if line != original:
                assert re.match(r"\s*from \.\w+ import ", line) and re.match(r"\s*from \.", original)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and f"{node.module}.py" in files
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                named = [node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
                assert not any(each.startswith("mega_transformers") for each in named)
    assert {where.partition(".")[0] + ".py" for where in auto_map(config).values()} <= files.keys()


def test_auto_map_has_every_registered_class():
    for config in (mega_transformers.MegaConfig(), mega_transformers.MegaSeq2SeqConfig()):
        for auto, where in auto_map(config).items():
            module, _, name = where.partition(".")
            (found,) = [each for each in sys.modules if flat(each.removeprefix("mega_transformers.")) == module]
            registered = getattr(importlib.import_module(found), name)
            if auto != "AutoConfig":
                assert getattr(transformers, auto)._model_mapping[type(config)] is registered
    names = {where.partition(".")[2] for where in auto_map(mega_transformers.MegaConfig()).values()}
    assert names >= MODELS.keys() - {"MegaForConditionalGeneration", "MegaForSequencePairClassification"}


def test_wrapper_has_no_code(tmp_path):
    source = save(encoder_decoder(), tmp_path / "source")
    with pytest.raises(PublishError, match=r"EncoderDecoderConfig.*leave out --standalone"):
        publish_folder(source, tmp_path / "output", with_code=True)
    assert not (tmp_path / "output").exists()
    publish_folder(source, tmp_path / "output")
    transformers.EncoderDecoderModel.from_pretrained(tmp_path / "output")
