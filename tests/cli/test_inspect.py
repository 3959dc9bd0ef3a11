"""`mega inspect`: the files it writes, and a message for every mistake before any work is done."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CAUSAL, SIZES, tiny_config
from transformers import BertConfig, BertModel
from typer.testing import CliRunner, Result

from mega_transformers import (
    MegaForConditionalGeneration,
    MegaForMultipleChoice,
    MegaForSequenceClassification,
    MegaModel,
    MegaSeq2SeqConfig,
)
from mega_transformers.cli import app, loading

TEXT = "The ship gave a <speech>."


def mega(*arguments: object, stdin: str | None = None) -> Result:
    options = ["--device", "cpu"]
    return CliRunner().invoke(app, ["inspect", *map(str, arguments), *options], input=stdin, env={"COLUMNS": "200"})


def refused(result: Result, *parts: str) -> None:
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    message = " ".join(result.stderr.split())
    assert message.startswith("Error: ") and "Traceback" not in message
    for part in parts:
        assert part in message


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be loaded."""

    def fail(*_: object) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr("mega_transformers.cli.inspect.load_libraries", fail)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No sections: drawing takes most of the time."""
    monkeypatch.setattr("mega_transformers.interpret.report.sections_of", lambda *_: [])


def test_report_pictures_and_numbers(tiny_causal_checkpoint: Path, tmp_path: Path) -> None:
    report, numbers, pictures = tmp_path / "report.html", tmp_path / "numbers.json", tmp_path / "new" / "pictures"
    report.write_text("an older one")
    result = mega(
        tiny_causal_checkpoint,
        "-o",
        report,
        "--json",
        numbers,
        "--figures",
        pictures,
        "--text",
        TEXT,
        "--lengths",
        "8,4",
    )
    assert result.exit_code == 0, result.output
    assert "Traceback" not in result.output
    shown = " ".join(result.stdout.split())
    assert f"{tiny_causal_checkpoint.name}, MegaForCausalLM" in shown
    assert "half-life median" in shown
    assert f"Wrote {report}" in shown
    html = report.read_text(encoding="utf-8")
    assert "The ship gave a &lt;speech&gt;." in html
    found = json.loads(numbers.read_text(encoding="utf-8"))
    assert [cost["length"] for cost in found["costs"]] == [4, 8]
    assert found["reading"]["passage"]["texts"][""] == TEXT
    assert {path.stem for path in pictures.iterdir()} == {
        *("parameters", "kernels", "memory", "half-lives", "position-biases"),
        *("gates", "attention", "distances", "costs"),
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "numbers.json", "report.html"]


def test_defaults(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None) -> None:
    monkeypatch.chdir(tmp_path)
    result = mega(tiny_checkpoint, "--no-timing", "--json", "numbers.json")
    assert result.exit_code == 0, result.output
    report = tmp_path / f"{tiny_checkpoint.name}-report.html"
    assert "MegaForMaskedLM" in report.read_text(encoding="utf-8")
    found = json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))
    assert found["costs"] is None
    assert found["reading"]["passage"]["description"] == "a bundled sample"


def test_text_from_a_file_or_stdin(tiny_checkpoint: Path, tmp_path: Path, undrawn: None) -> None:
    def read_text(*arguments: object, stdin: str | None = None) -> str:
        files = "-o", tmp_path / "a.html", "--json", tmp_path / "a.json", "--no-timing"
        result = mega(tiny_checkpoint, *files, *arguments, stdin=stdin)
        assert result.exit_code == 0, result.output
        return json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["reading"]["passage"]["texts"][""]

    (tmp_path / "text.txt").write_text("A whale swam.", encoding="utf-8")
    assert read_text("--text-file", tmp_path / "text.txt") == "A whale swam."
    assert read_text("--text", "-", stdin="The ship\nsank.\n") == "The ship\nsank."


@pytest.mark.parametrize(
    "make",
    [
        lambda: MegaForMultipleChoice(tiny_config()),
        lambda: MegaForSequenceClassification(tiny_config(input_type="values")),
        lambda: MegaModel(tiny_config(**CAUSAL, add_cross_attention=True)),
        lambda: MegaForConditionalGeneration(MegaSeq2SeqConfig(encoder=SIZES, decoder=SIZES)),
    ],
    ids=["choice", "values", "decoder alone", "encoder-decoder"],
)
def test_folders_without_tokenizer(make, tmp_path: Path, undrawn: None) -> None:
    model = make()
    model.save_pretrained(tmp_path / "model")
    result = mega(tmp_path / "model", "-o", tmp_path / "a.html", "--json", tmp_path / "a.json", "--lengths", "4")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert found["architecture"] == type(model).__name__
    assert found["total_parameters"] == model.num_parameters()
    refused(mega(tmp_path / "model", "-o", tmp_path / "b.html", "--text", TEXT), "text")
    assert not (tmp_path / "b.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "/nowhere/a.html"], "--output /nowhere/a.html: there is no folder /nowhere"),
        (["-o", "."], "--output .: this is a folder"),
        (["-o", os.devnull], "not a regular file"),
        (["--json", "/nowhere/a.json"], "--json /nowhere/a.json: there is no folder /nowhere"),
        (["-o", "same", "--json", "same"], "--json same: the report itself goes to that file"),
        (["--figures", __file__], "this is a file; name another folder"),
        (["--lengths", "12,many"], "--lengths 12,many: expected whole numbers of tokens separated by commas"),
        (["--lengths", "0"], "--lengths 0: expected"),
        (["--lengths", "12", "--no-timing"], "--no-timing measures no lengths"),
        (["--text", " "], "--text: the text is empty"),
        (["--text", "a", "--text-file", __file__], "exclude each other"),
        (["--text-file", "nowhere.txt"], "cannot read nowhere.txt"),
        (["--text", "\udcff"], "not valid UTF-8"),
        (["--dtype", "int8"], "--dtype int8: expected auto"),
    ],
)
def test_mistakes_are_told_before_any_work(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_work: None
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(mega("mega-prose-5m", *arguments), message)
    assert not list(tmp_path.iterdir())


def test_missing_folders_and_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_work: None) -> None:
    monkeypatch.chdir(tmp_path)
    refused(mega(tmp_path / "nowhere"), "MODEL", "there is no such folder")
    refused(mega(tmp_path), "MODEL", "no config.json")
    refused(mega("mega-prose-5"), "did you mean mega-prose-5m?")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    refused(mega("mega-prose-5m"), "pip install 'mega-transformers[inspect]'")
    assert not list(tmp_path.iterdir())


def test_models_that_cannot_be_inspected(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    BertModel(
        BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    ).save_pretrained("bert")
    refused(mega("bert"), "MODEL bert: its type is bert", "mega or mega_seq2seq")

    def changed(name: str) -> Path:
        shutil.copytree(tiny_checkpoint, name)
        return Path(name) / "model.safetensors"

    weights = changed("cut")
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(mega("cut"), "cannot load the model cut", "truncated or corrupt")
    weights = changed("less")
    tensors = load_file(weights)
    save_file({name: tensor for name, tensor in tensors.items() if "v_proj" not in name}, weights, {"format": "pt"})
    refused(mega("less"), "its checkpoint lacks 4 weights of a MegaForMaskedLM", "v_proj")
    weights = changed("nan")
    tensors["mega.layers.1.mega_layer.ema_gate.decay_factor"][3] = torch.nan
    save_file(tensors, weights, {"format": "pt"})
    refused(mega("nan"), "mega.layers.1.mega_layer.ema_gate.decay_factor holds numbers that are not finite")
    (changed("config").parent / "config.json").write_text("{")
    refused(mega("config"), "cannot load the model config")
    (changed("words").parent / "tokenizer.json").write_text("{")
    refused(mega("words"), "cannot load the model words")
    assert not list(tmp_path.glob("*.html"))


def test_texts_and_lengths_that_are_too_long(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(mega(tiny_checkpoint, "--text", "speech " * 600), "tokens, but a report shows at most 512; shorten it")
    model = MegaModel(tiny_config(relative_positional_bias="simple", max_positions=16))
    model.save_pretrained("short")
    refused(mega("short", "--lengths", "8,17"), "--lengths: 17 is above the 16 tokens that the model takes")
    assert not list(tmp_path.glob("*.html"))


def test_nothing_is_half_written(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None
) -> None:
    report = tmp_path / "report.html"
    report.write_text("an older one")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(report))

    monkeypatch.setattr(Path, "replace", full)
    result = mega(tiny_checkpoint, "-o", report, "--no-timing")
    refused(result, "No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert report.read_text() == "an older one"


def test_loading_says_where_there_is_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "_hub_answers", lambda *_: False)
    refused(mega("nobody/nothing"), "cannot load the model nobody/nothing", "model hub does not answer")
