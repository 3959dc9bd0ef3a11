"""`mega explain`: colours, tables, JSON and pages of attributions, and a sentence for every mistake."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from answers_of import answers
from transformers import AutoModelForMaskedLM, AutoTokenizer
from typer.testing import CliRunner, Result

from mega_transformers import MegaConfig, MegaForSequenceClassification, errors
from mega_transformers.assets import bundled_model
from mega_transformers.cli import app
from mega_transformers.interpret.attribution import attribute

pytest.importorskip("captum.attr")

ONE = "The <mask> of the United States gave a speech."
TWO = "A <mask> swam under the <mask>."


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps: what a command shows does not depend on how exact it is."""
    from mega_transformers.interpret import attribution

    explain = attribution.explain

    def two_steps(*arguments, **options):
        return explain(*arguments, **{**options, "steps": 2, "max_steps": 2})

    monkeypatch.setattr(attribution, "explain", two_steps)


def mega(*arguments: object, stdin: str | None = None, **env: str) -> Result:
    command = ["explain", "--device", "cpu", *map(str, arguments)]
    return CliRunner().invoke(app, command, input=stdin, env={"COLUMNS": "200", **env})


def refused(result: Result, *parts: str, code: int = 1) -> None:
    assert result.exit_code == code, result.output
    assert result.stdout == "" and "Traceback" not in result.stderr
    message = " ".join(result.stderr.replace("│", " ").split())
    for part in parts:
        assert part in message


@pytest.fixture(scope="module")
def classifier(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    labels = {0: "order", 1: "speech", 2: "whale"}
    MegaForSequenceClassification(MegaConfig.from_pretrained(tiny_checkpoint, id2label=labels)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(folder)
    return folder


def test_json_is_the_attribution(tiny_checkpoint: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(tiny_checkpoint).eval()
    (expected,) = attribute(model, AutoTokenizer.from_pretrained(tiny_checkpoint), ONE, steps=2, max_steps=2)
    first, second = answers(mega(ONE, TWO, "-m", tiny_checkpoint, "--json"))
    assert (first["text"], second["text"]) == (ONE, TWO)
    (one,) = first["explanations"]
    assert "".join(token["text"] for token in one["tokens"]) == ONE
    assert [token["score"] for token in one["tokens"]] == pytest.approx(expected.scores, rel=1e-4, abs=1e-6)
    assert one["target"] == expected.target and one["steps"] == 2 and one["seconds"] >= 0
    assert one["probability"] == pytest.approx(math.exp(one["value"]))
    assert one["completeness_error"] == pytest.approx(expected.error, rel=1e-2)
    assert [two["tokens"][two["place"]]["text"].strip() for two in second["explanations"]] == ["<mask>", "<mask>"]
    assert len({two["place"] for two in second["explanations"]}) == 2


def test_tables_without_colour(tiny_checkpoint: Path) -> None:
    result = mega(TWO, "-m", tiny_checkpoint, "-k", 2)
    assert result.exit_code == 0, result.stderr
    assert "\x1b" not in result.stdout and "mask 2 of 2" in result.stdout
    assert [line.split()[0] for line in result.stdout.splitlines() if line[:4].strip().isdigit()] == ["1", "2"] * 2
    (answer,) = answers(mega(TWO, "-m", tiny_checkpoint, "--json"))
    for found in answer["explanations"]:
        strongest = max((token for token in found["tokens"]), key=lambda token: abs(token["score"]))
        assert f"{strongest['score']:+.2f}" in result.stdout and f"[{strongest['text'].strip()}]" in result.stdout
        assert f"probability {found['probability']:.1%}" in result.stdout
        assert f"completeness error {found['completeness_error']:.2%}  2 steps" in result.stdout
    assert "after 2 steps, the scores of 'A <mask> swam" in result.stderr


def test_colours_on_a_terminal(tiny_checkpoint: Path) -> None:
    terminal = {"FORCE_COLOR": "1", "COLORTERM": "truecolor", "TERM": "xterm-256color"}
    coloured = mega("A whale\x1b[31m <mask>", "-m", tiny_checkpoint, **terminal).stdout
    assert "\x1b[38;2;0;0;0;48;2;" in coloured and "\x1b[31m" not in coloured and "\\x1b[" in coloured
    assert "48;2;" not in mega("A whale <mask>", "-m", tiny_checkpoint, NO_COLOR="1", **terminal).stdout


def test_next_words_and_classes(tiny_causal_checkpoint: Path, classifier: Path) -> None:
    (answer,) = answers(mega("The captain", "-m", tiny_causal_checkpoint, "--target", "s", "--json"))
    (found,) = answer["explanations"]
    assert found["target"].strip() == "s" and found["place"] is None
    (answer,) = answers(mega("-", "-m", classifier, "--target", "speech", "--json", stdin="The captain\n"))
    assert answer["explanations"][0]["target"] == "speech" and answer["text"] == "The captain"
    for dtype in ("bfloat16", "float16"):
        assert "speech" in mega("The captain", "-m", classifier, "--target", "speech", "--dtype", dtype).stdout


def test_page(tiny_checkpoint: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("old")
    result = mega("A <b>whale</b> <mask>", TWO, "-m", tiny_checkpoint, "--html", page, "--baseline", "<pad>")
    assert result.exit_code == 0, result.stderr
    source = page.read_text(encoding="utf-8")
    assert source.startswith("<!DOCTYPE html>") and source.count("<section>") == 3
    assert "<b>" not in source and "http" not in source
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_mistakes(tiny_checkpoint: Path, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.html"
    refused(mega(ONE, "none", "-m", tiny_checkpoint, "--html", page), "no mask in 'none': write <mask>")
    refused(mega(ONE, "-m", tiny_checkpoint, "--target", "qqqq"), "target 'qqqq' is not one token of the model but 4")
    refused(mega(ONE, "-m", tiny_checkpoint, "--baseline", "<mas>"), "baseline '<mas>'", "did you mean <mask>")
    refused(mega("a", "-m", classifier, "--target", "speach"), "target 'speach'", "did you mean speech?")
    refused(mega("a", "-m", bundled_model("mega-g2p-1m")), "sequence-to-sequence", "use it with mega text2text")
    refused(mega(ONE, "--steps", 0), "--steps", code=2)
    refused(mega(ONE, "--steps", 2000), "--steps", "1024", code=2)
    refused(mega(ONE, "--html", tmp_path / "none" / "page.html"), "--html", "there is no folder")
    monkeypatch.setattr(errors, "find_spec", lambda package: None)
    refused(mega(ONE), "mega explain needs the package captum: pip install 'mega-transformers[explain]'")
    assert not page.exists()
