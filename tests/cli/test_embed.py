"""`mega embed`: vectors of texts as JSON, as a file, as tables, and a message for every mistake."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from answers_of import answers, refused
from transformers import AutoModel, AutoTokenizer
from typer.testing import CliRunner, Result

from mega_transformers import MegaConfig, MegaForMaskedLM, MegaModel
from mega_transformers.cli import app

ONE, TWO = "A whale swam under the ship.", "The president of the United States gave a speech."


def mega(*arguments: object, stdin: str | bytes | None = None) -> Result:
    """On the CPU, whose numbers the tests know."""
    arguments = ("embed", "--device", "cpu", *map(str, arguments))
    return CliRunner().invoke(app, [*arguments], input=stdin, env={"COLUMNS": "120"})


def expected(folder: Path, text: str) -> np.ndarray:
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids
    with torch.no_grad():
        return AutoModel.from_pretrained(folder).eval()(ids)[0].mean(1)[0].numpy()


def test_json_has_the_vectors_in_the_order_of_the_inputs(tiny_checkpoint: Path, tmp_path: Path) -> None:
    book, rows = tmp_path / "book.txt", tmp_path / "rows.csv"
    book.write_text(f"{ONE}\n{TWO}\n")
    rows.write_text(f"id,body\n1,{TWO}\n")
    files = ("-f", book, "-f", rows, "--column", "body")
    found = answers(mega("short", "-", *files, "-m", tiny_checkpoint, "--json", stdin=f"\n{TWO}\n"))
    assert [one["id"] for one in found] == ["1", "2", str(book), f"{rows}:2"]
    assert [one.get("text") for one in found] == ["short", TWO, None, TWO]
    assert found[1]["vector"] == pytest.approx(found[3]["vector"], abs=1e-4)
    for one, text in zip(found, ("short", TWO, f"{ONE}\n{TWO}\n", TWO)):
        vector = expected(tiny_checkpoint, text)
        np.testing.assert_allclose(one["vector"], vector, atol=1e-5 * np.abs(vector).max())
        assert one["tokens"] == len(AutoTokenizer.from_pretrained(tiny_checkpoint)(text).input_ids)
    alone = answers(mega("-f", book, "-m", tiny_checkpoint, "--json", "--normalize", "--batch-size", 1))
    assert np.linalg.norm(alone[0]["vector"]) == pytest.approx(1, abs=1e-6)
    lines = answers(mega("-f", book, "--lines", "-m", tiny_checkpoint, "--json", "--max-tokens", 1))
    assert [one["id"] for one in lines] == [f"{book}:1", f"{book}:2"]


def test_the_file_holds_what_json_shows(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    result = mega(ONE, TWO, "-m", tiny_checkpoint, "-o", out, "--json")
    with np.load(out, allow_pickle=False) as arrays:
        assert arrays["vectors"].dtype == np.float32
        np.testing.assert_array_equal(arrays["vectors"], np.float32([one["vector"] for one in answers(result)]))
        assert arrays["ids"].tolist() == ["1", "2"]
        assert arrays["tokens"].tolist() == [one["tokens"] for one in answers(result)]
    assert "2 vectors of 32 numbers" in result.stderr
    assert list(tmp_path.iterdir()) == [out]


def test_a_failure_leaves_the_old_file(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    out = tmp_path / "out.npz"
    out.write_text("old")
    monkeypatch.setattr(np, "savez", full)
    refused(mega(ONE, "-m", tiny_checkpoint, "-o", out), "No space left")
    assert out.read_text() == "old" and list(tmp_path.iterdir()) == [out]


def test_tables(tiny_checkpoint: Path, tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("".join(f"[bold] text {number}\n" for number in range(30)))
    result = mega("-f", lines, "--lines", "-m", tiny_checkpoint)
    assert result.exit_code == 0, result.stderr
    for part in ("[bold] text 19", "1.000", "4 of 32 numbers", "and 10 more", "tokens per second", "mean"):
        assert part in result.stdout
    assert "text 20" not in result.stdout
    whole = mega("-f", lines, "-m", tiny_checkpoint, "--pooling", "max")
    assert str(lines)[:40] in whole.stdout and "cosine" not in whole.stdout and "max" in whole.stdout


def test_the_nearest_texts(tiny_checkpoint: Path) -> None:
    texts = ("sailors", ONE, TWO)
    shown = mega(*texts, "--query", ONE, "-k", 2, "-m", tiny_checkpoint)
    assert shown.exit_code == 0 and "1.000" in shown.stdout and TWO[:20] in shown.stdout
    assert "sailors" not in shown.stdout
    found = answers(mega(*texts, "--query", ONE, "-m", tiny_checkpoint, "--json"))
    assert found[0] == {"id": "2", "text": ONE, "cosine": pytest.approx(1, abs=1e-5)}
    cosines = [one["cosine"] for one in found]
    assert len(cosines) == 3 and cosines == sorted(cosines, reverse=True)


def test_a_folder_of_sentence_transformers(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = pytest.importorskip("sentence_transformers")
    models = pytest.importorskip("sentence_transformers.models")
    transformer = models.Transformer(str(tiny_checkpoint), max_seq_length=16)
    model = package.SentenceTransformer(modules=[transformer, models.Pooling(32, pooling_mode="max")], device="cpu")
    model.save(str(tmp_path / "folder"))
    (one,) = answers(mega(ONE[:9], "-m", tmp_path / "folder", "--json"))
    np.testing.assert_allclose(one["vector"], model.encode(ONE[:9]), atol=1e-4)
    chosen = answers(mega(ONE[:9], "-m", tmp_path / "folder", "--pooling", "max", "--json"))
    np.testing.assert_allclose(chosen[0]["vector"], one["vector"], atol=1e-4)
    refused(mega(TWO * 2, "-m", tmp_path / "folder"), "takes at most 16", "--max-length 16")
    result = mega(TWO * 2, "-m", tmp_path / "folder", "--max-length", 200, "--json")
    assert answers(result)[0]["tokens"] > 16 and result.stderr == ""
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    refused(mega(ONE, "-m", tmp_path / "folder"), "pip install 'mega-transformers[embed]'", "--pooling")


def test_texts_are_cut_on_demand_only(tiny_checkpoint: Path, tmp_path: Path) -> None:
    long = "whale " * 200
    assert "max_positions=128" in mega(long, "-m", tiny_checkpoint, "--json").stderr
    config = MegaConfig.from_pretrained(tiny_checkpoint, relative_positional_bias="simple")
    MegaForMaskedLM(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(tmp_path)
    refused(mega("fine", long, "-m", tmp_path), "'whale whale", "takes at most 128", "--max-length 128")
    result = mega("fine", long, "-m", tmp_path, "--max-length", 128, "--json")
    assert answers(result)[1]["tokens"] == 128
    assert "1 of 2 texts are cut to 128 tokens" in result.stderr
    refused(mega("fine", "-m", tmp_path, "--max-length", 129), "--max-length 129: expected 6 to 128")
    refused(mega("fine", "-m", tmp_path, "--max-length", 3), "--max-length 3")


def test_mistakes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = ("-m", tiny_checkpoint)
    table, text = tmp_path / "a.csv", tmp_path / "a.txt"
    table.write_text("id,text\n1,a\n")
    text.write_bytes(b"\xff\xfe")
    refused(mega("", *model), "'' is empty; give a text", code=2)
    refused(mega(*model, stdin=""), "stdin holds no text")
    refused(mega(*model, stdin=b"\xff\n"), "not valid UTF-8")
    refused(mega(ONE, "--query", " ", *model), "--query", "empty", code=2)
    refused(mega("-f", tmp_path / "none.txt", *model), "cannot read", "none.txt")
    refused(mega("-f", text, *model), "cannot read", "a.txt", "utf-8")
    refused(mega("-f", table, "--column", "txt", *model), "no column 'txt'; did you mean text?")
    refused(mega("-f", table, "--lines", *model), "--lines", "no --file is a text file", code=2)
    refused(mega(ONE, "--column", "a", *model), "--column", "no --file is a .csv", code=2)
    refused(mega(ONE, "--pooling", "cls", *model), "--pooling cls: expected mean, first, last or max")
    refused(mega(ONE, "-o", tmp_path / "no" / "x.npz", *model), "there is no folder")
    refused(mega(ONE, "-o", tmp_path / "x.npy", *model), "ends in .npz")
    refused(mega(ONE, "-m", tmp_path), "no config.json")
    refused(mega("-f", table, "--batch-size", 0, *model), "--batch-size", code=2)
    result = mega(str(table), *model, "--json")
    assert f"--file {table}" in result.stderr and answers(result)[0]["text"] == str(table)


def test_models_that_cannot_be_used(tiny_checkpoint: Path, tmp_path: Path) -> None:
    values = MegaConfig.from_pretrained(tiny_checkpoint, input_type="values")
    MegaModel(values).save_pretrained(tmp_path / "values")
    refused(mega(ONE, "-m", tmp_path / "values"), "cannot load the model")
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(tmp_path / "values")
    refused(mega(ONE, "-m", tmp_path / "values"), "reads values, not text")
    shutil.copytree(tiny_checkpoint, tmp_path / "broken")
    (tmp_path / "broken" / "modules.json").write_text("{")
    refused(mega(ONE, "-m", tmp_path / "broken"), "cannot load the model")
