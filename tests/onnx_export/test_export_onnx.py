"""`mega export-onnx`: what it writes and tells, that its check can fail, and a message for every mistake."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from tiny import CAUSAL, SIZES, tiny_config
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer
from typer.testing import CliRunner, Result

from mega_transformers import (
    MegaConfig,
    MegaForCausalLM,
    MegaForConditionalGeneration,
    MegaForMaskedLM,
    MegaModel,
    MegaSeq2SeqConfig,
    MegaSeq2SeqModel,
)
from mega_transformers.cli import app
from mega_transformers.cli import export_onnx as command

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from mega_transformers.onnx_export import ExportError, export_folder, onnx_folder  # noqa: E402
from mega_transformers.onnx_export.check import _deviation, check, lengths_of, refuse_deviations  # noqa: E402

DOCUMENT = Path(__file__).parents[2] / "docs" / "onnx.md"
CHUNK = 8


def mega(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["export-onnx", *map(str, arguments)], env={"COLUMNS": "160"})


@pytest.fixture(scope="module")
def causal(tmp_path_factory, tiny_causal_checkpoint) -> Path:
    """A causal model with chunks and a truncated average, and its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_checkpoint)
    sizes = {**SIZES, "vocab_size": len(tokenizer), "num_hidden_layers": 1}
    torch.manual_seed(0)
    config = MegaConfig(**sizes, **CAUSAL, use_chunking=True, chunk_size=CHUNK, truncation=5, initializer_range=0.5)
    folder = tmp_path_factory.mktemp("causal")
    MegaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(causal, tmp_path_factory) -> tuple[Path, Result]:
    """What the command writes and prints."""
    folder = tmp_path_factory.mktemp("exported") / "onnx-model"
    return folder, mega(causal, folder, "--int8")


def test_writes_a_folder(causal, exported):
    folder, result = exported
    assert result.exit_code == 0, result.output
    names = {path.name for path in folder.iterdir()}
    graphs = {"model.onnx", "decoder.onnx", "model.int8.onnx", "decoder.int8.onnx"}
    assert names >= graphs | {"config.json", "export.json", "tokenizer.json"}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    shown = " ".join(result.stdout.split())
    for part in ("MegaForCausalLM", "PyTorch, ms", "8-bit weights", "next words: the same choice in", "nats a token"):
        assert part in shown
    settings = json.loads((folder / "export.json").read_text())
    assert settings["opset"] == 18 and settings["max_length"] is None
    assert {x.version for x in onnx.load(folder / "model.onnx").opset_import if not x.domain} == {18}
    assert settings["graphs"].keys() == graphs
    inputs, outputs = (settings["graphs"]["decoder.onnx"][side] for side in ("inputs", "outputs"))
    assert inputs["input_ids"] == {"dtype": "int64", "shape": ["batch", 1]}
    assert inputs["past.keys.0"]["shape"] == ["batch", CHUNK - 1, SIZES["shared_representation_size"]]
    past = {name.removeprefix("past."): x for name, x in inputs.items() if name.startswith("past.")}
    assert past == {n.removeprefix("present."): x for n, x in outputs.items() if n.startswith("present.")}
    assert past.keys() == {"position", "mask", "keys.0", "values.0", "state.0", "history.0"}
    rows = settings["check"]["rows"]
    lengths = lengths_of(MegaForCausalLM.from_pretrained(causal))
    assert lengths[:4] == [1, CHUNK // 2, CHUNK, CHUNK + 1] and len(lengths) == 6
    assert [row["length"] for row in rows if row["graph"] == "model"] == lengths
    assert [row["length"] for row in rows if row["graph"] == "decoder"] == lengths
    assert 0 < max(row["deviation"] for row in rows) <= 1e-4


def test_8_bits_are_in_linear_layers_and_embeddings_alone(causal, exported):
    """What is rounded are those matrices, and everything of the averages stays as it is."""
    folder, _ = exported
    graph = onnx.load(folder / "model.int8.onnx").graph
    rounded = [sorted(x.dims) for x in graph.initializer if x.data_type == onnx.TensorProto.INT8 and len(x.dims) > 1]
    model = MegaForCausalLM.from_pretrained(causal)
    layers = (x for x in model.modules() if isinstance(x, (torch.nn.Linear, torch.nn.Embedding)))
    tied = {x.weight.data_ptr(): sorted(x.weight.shape) for x in layers}
    assert sorted(rounded) == sorted(tied.values())
    sizes = [(folder / name).stat().st_size for name in ("model.int8.onnx", "model.onnx")]
    assert sizes[0] < sizes[1]


def python_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def test_the_document_writes_what_generate_writes(causal, exported, monkeypatch):
    """Behind a prompt, over the edges of two chunks."""
    (code,) = [block for block in python_blocks() if '"model", "decoder"' in block]
    monkeypatch.chdir(exported[0].parent)
    names: dict = {}
    exec(compile(code, "onnx.md", "exec"), names)
    model = MegaForCausalLM.from_pretrained(causal)
    tokenizer = AutoTokenizer.from_pretrained(causal)
    prompt = tokenizer(re.search(r'encode\("(.*?)"\)', code)[1], return_tensors="pt").input_ids
    count = names["ids"].shape[1] - prompt.shape[1]
    assert count > 2 * CHUNK
    written = model.generate(prompt, do_sample=False, min_new_tokens=count, max_new_tokens=count, eos_token_id=-1)
    assert names["ids"].tolist() == written.tolist()


@pytest.mark.parametrize("name", ["model", "decoder"])
def test_a_changed_weight_is_noticed(causal, exported, tmp_path, monkeypatch, name):
    """By the check, and by the command, which then leaves nothing behind."""

    def damaged(graph, path: Path, opset: int) -> None:
        proto = onnx.load(exported[0] / path.name)
        if graph.name == name:
            largest = max(
                (x for x in proto.graph.initializer if x.data_type == onnx.TensorProto.FLOAT and len(x.dims) == 2),
                key=lambda x: max(x.dims),
            )
            numbers = onnx.numpy_helper.to_array(largest).copy()
            numbers *= 1.01
            largest.CopyFrom(onnx.numpy_helper.from_array(numbers, largest.name))
        onnx.save(proto, path)

    monkeypatch.setattr(onnx_folder, "write_graph", damaged)
    with pytest.raises(ExportError, match=rf"{name}\.onnx deviates from the model by .* nothing was written"):
        export_folder(causal, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    result = mega(causal, tmp_path / "out")
    assert result.exit_code == 1 and "deviates" in result.stderr and "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def test_an_encoder_decoder(tmp_path, monkeypatch):
    """Simple bias without chunks, so that a row has an end; and the document's loop writes what generate writes."""
    vocabulary = {"<pad>": 0, "</s>": 1, **{letter: 2 + i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}}
    sizes = {"num_hidden_layers": 1, "relative_positional_bias": "simple", "max_positions": 24, "pad_token_id": 0}
    encoder = tiny_config(**sizes, attention_activation="laplace", initializer_range=0.5)
    decoder = tiny_config(**sizes, **CAUSAL, add_cross_attention=True, initializer_range=0.5)
    config = MegaSeq2SeqConfig(encoder=encoder.to_dict(), decoder=decoder.to_dict(), decoder_start_token_id=1)
    torch.manual_seed(0)
    model = MegaForConditionalGeneration(config).eval()
    source, output = tmp_path / "source", tmp_path / "onnx-model"
    model.save_pretrained(source)
    report = export_folder(source, output)
    assert {row.graph for row in report.rows} == {"encoder", "decoder"}
    assert max(row.length for row in report.rows) == 24
    settings = json.loads((output / "export.json").read_text())
    assert settings["max_length"] == 24
    shapes = {name: x["shape"] for name, x in settings["graphs"]["decoder.onnx"]["inputs"].items()}
    assert shapes["past.keys.0"] == ["batch", "past", SIZES["shared_representation_size"]]
    assert shapes["cross.values.0"] == ["batch", "source_length", SIZES["hidden_size"]]
    (code,) = [block for block in python_blocks() if '"encoder", "decoder"' in block]
    word = re.search(r'encode\("(.*?)"\)', code)[1]
    ids = [vocabulary[letter] for letter in word]
    monkeypatch.chdir(tmp_path)
    tokenizer = json.loads(Tokenizer(models.WordLevel(vocabulary, "<pad>")).to_str())
    tokenizer["pre_tokenizer"] = {
        "type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False
    }  # fmt: skip
    (output / "tokenizer.json").write_text(json.dumps(tokenizer))
    names: dict = {}
    exec(compile(code, "onnx.md", "exec"), names)
    count = len(names["written"])
    assert count > 8
    expected = model.generate(
        torch.tensor([ids]), do_sample=False, num_beams=1, max_new_tokens=count, eos_token_id=config.eos_token_id
    )
    assert names["written"] == expected[0, 1 : count + 1].tolist()


def test_a_check_finds_a_number_that_is_none(causal, exported, monkeypatch):
    from mega_transformers.onnx_export.check import Row

    with pytest.raises(ExportError, match="deviates"):
        refuse_deviations([Row("model", 1, float("nan"), 1.0, 1.0)])
    model = MegaForCausalLM.from_pretrained(causal).eval()
    with torch.no_grad():
        model.lm_head.bias[0] += 1e-3
    rows = check(model, exported[0], suffix=".int8")
    assert max(row.deviation for row in rows) > 1e-4


def test_a_deviation_is_relative_to_the_numbers_of_an_output():
    expected = torch.tensor([[[1.0, -3.0], [100.0, 0.0]]])
    real = torch.tensor([[1, 0]])
    assert _deviation(expected + 0.01, expected, None) == pytest.approx(0.01 / 101, rel=1e-3)
    assert _deviation(expected + 0.01, expected, real) == pytest.approx(0.01 / 4, rel=1e-3)
    assert _deviation(expected, expected, real) == 0
    assert _deviation(expected * torch.nan, expected, real) == torch.inf
    assert _deviation(expected[..., :1], expected, real) == torch.inf


# -- mistakes


def refused(result: Result, *parts: str) -> None:
    assert result.exit_code == 1, result.output
    assert result.stdout == "" and "Traceback" not in result.stderr
    message = " ".join(result.stderr.split())
    for part in parts:
        assert part in message


def test_mistakes_before_any_work(causal, exported, tmp_path, monkeypatch):
    out, text = tmp_path / "out", tmp_path / "text.txt"
    text.write_bytes(b"\xff\xfe\xff")
    refused(mega(tmp_path / "none", out), f"MODEL {tmp_path / 'none'}: there is no such folder or bundled model")
    refused(mega(tmp_path, exported[0].parent / "out"), "holds no config.json")
    refused(mega(causal, text), f"OUT {text}: this is a file")
    refused(mega(causal, exported[0]), "exists already", "--force")
    refused(mega(causal, causal / "out"), "is in the source folder", "name a folder outside of it")
    refused(mega(causal, tmp_path / "a" / "b"), f"there is no folder {tmp_path / 'a'}")
    refused(mega(causal, out, "--text-file", text), "--text-file", "needs --int8")
    refused(mega(causal, out, "--int8", "--text-file", text), "is not valid UTF-8")
    refused(mega(causal, out, "--int8", "--text-file", tmp_path / "x"), "there is no such file")
    assert mega(causal, out, "--opset", 17).exit_code == 2
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    refused(mega(causal, out), "onnxruntime and onnxscript", "pip install 'mega-transformers[onnx]'")
    assert not out.exists()


def test_an_empty_folder_may_be_there_and_a_model_with_force(causal, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    asked = []
    monkeypatch.setattr(onnx_folder, "check_source", lambda source: asked.append(source))

    def stop(*_) -> None:
        raise ExportError("x")

    monkeypatch.setattr(onnx_folder, "open_folder", stop)
    for force in (False, True):
        with pytest.raises(ExportError, match=r"^x$"):
            export_folder(causal, out, force=force)
        (out / "config.json").write_text("{}")
    with pytest.raises(Exception, match="exists already"):
        export_folder(causal, out)
    assert asked == [causal, causal]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("bert", "is a model of type bert, not a Mega model; export it with `optimum-cli export onnx`"),
        ("seq2seq", "a MegaSeq2SeqModel has no language model head"),
        ("crossing", "add_cross_attention=True needs an encoder's states"),
        ("single", "chunk_size=1 cannot be exported"),
        ("heads", "must name one of"),
    ],
)
def test_models_that_have_no_graph(tmp_path, kind, message):
    """Without a look at weights: there are none."""
    if kind == "bert":
        config = {"model_type": "bert", "architectures": ["BertModel"]}
    elif kind == "seq2seq":
        config = {**MegaSeq2SeqConfig().to_dict(), "architectures": [MegaSeq2SeqModel.__name__]}
    elif kind == "crossing":
        config = {**tiny_config(**CAUSAL, add_cross_attention=True).to_dict(), "architectures": ["MegaForCausalLM"]}
    elif kind == "single":
        fields = tiny_config(**CAUSAL, use_chunking=True, chunk_size=1).to_dict()
        config = {**fields, "architectures": ["MegaForCausalLM"]}
    else:
        config = {**tiny_config().to_dict(), "architectures": [MegaModel.__name__, MegaForMaskedLM.__name__]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(mega(tmp_path, tmp_path.with_name("out-of-" + tmp_path.name)), message)
