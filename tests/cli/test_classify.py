"""`mega classify`: labels, numbers and tags as JSON and tables, and a message for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from answers_of import answers, refused
from tiny import SIZES, tiny_config
from transformers import AutoTokenizer
from typer.testing import CliRunner, Result

from mega_transformers import MegaForSequenceClassification, MegaForTokenClassification
from mega_transformers.cli import app

ONE, TWO = "A whale swam under the ship.", "The president gave a speech."


def mega(*arguments: object, stdin: str | None = None) -> Result:
    arguments = ("classify", "--device", "cpu", *map(str, arguments))
    return CliRunner().invoke(app, [*arguments], input=stdin, env={"COLUMNS": "100"})


@pytest.fixture
def save(tmp_path: Path, tiny_checkpoint: Path):
    def saved(kind, name: str, **fields) -> Path:
        tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
        torch.manual_seed(0)
        sizes = {**SIZES, "vocab_size": len(tokenizer), "initializer_range": 0.7}
        model = kind(tiny_config(**sizes, **fields))
        for folder in (model, tokenizer):
            folder.save_pretrained(tmp_path / name)
        return tmp_path / name

    return saved


def logits(kind, folder: Path, *text: str) -> torch.Tensor:
    with torch.no_grad():
        return (
            kind.from_pretrained(folder)
            .eval()(**AutoTokenizer.from_pretrained(folder)(*text, return_tensors="pt"))
            .logits[0]
        )


def test_one_label_per_text(save) -> None:
    names = {0: "[a]", 1: "b", 2: "c"}
    folder = save(MegaForSequenceClassification, "single", id2label=names)
    found = answers(mega(ONE, TWO, "-m", folder, "--json", "-k", 2))
    for one, text in zip(found, (ONE, TWO)):
        best = logits(MegaForSequenceClassification, folder, text).softmax(-1).topk(2)
        assert one["text"] == text
        assert [label["label"] for label in one["labels"]] == [names[index] for index in best.indices.tolist()]
        assert [label["score"] for label in one["labels"]] == pytest.approx(best.values.tolist(), abs=1e-5)
    shown = mega(ONE, TWO, "-m", folder)
    assert shown.exit_code == 0
    for part in (ONE, TWO, "[a]", f"{found[0]['labels'][0]['score']:.1%}", "█"):
        assert part in shown.stdout
    refused(mega(ONE, "-m", folder, "--threshold", 0.2), "--threshold 0.2", "gives each text a single label")


def test_several_labels_per_text(save) -> None:
    folder = save(MegaForSequenceClassification, "multi", num_labels=6, problem_type="multi_label_classification")
    probabilities = logits(MegaForSequenceClassification, folder, ONE).sigmoid()
    for threshold, options in ((0.5, ()), (0.2, ("--threshold", 0.2)), (1.0, ("--threshold", 1))):
        (found,) = answers(mega(ONE, "-m", folder, "--json", "-k", 6, *options))
        there = {label["label"]: label["score"] for label in found["labels"]}
        kept = {f"LABEL_{index}": p for index, p in enumerate(probabilities.tolist()) if p >= threshold}
        assert there == pytest.approx(kept, abs=1e-5)
        assert list(there.values()) == sorted(there.values(), reverse=True)
    assert 0 < (probabilities >= 0.5).sum() < (probabilities >= 0.2).sum()
    assert "none" in mega(ONE, "-m", folder, "--threshold", 1).stdout


def test_pairs_and_numbers(save, tmp_path: Path) -> None:
    folder = save(MegaForSequenceClassification, "numbers", id2label={0: "score"}, problem_type="regression")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"text": ONE, "text_pair": TWO}))
    expected = logits(MegaForSequenceClassification, folder, ONE, TWO).item()
    for found in (
        answers(mega(f"{ONE}\t{TWO}", "-m", folder, "--pair", "--json")),
        answers(mega("-f", rows, "-m", folder, "--pair", "--json")),
        answers(mega("-f", rows, "--column", "text", "--column", "text_pair", "-m", folder, "--pair", "--json")),
        answers(mega("-m", folder, "--pair", "--json", stdin=f"{ONE}\t{TWO}\n")),
    ):
        assert found[0]["values"] == {"score": pytest.approx(expected, abs=1e-5)}
        assert (found[0]["text"], found[0]["text_pair"]) == (ONE, TWO)
    shown = mega(f"{ONE}\t{TWO}", "-m", folder, "--pair")
    assert "score" in shown.stdout and f"{expected:.4g}" in shown.stdout
    refused(mega(ONE, "-m", folder, "--pair"), "1: expected two texts separated by a tab, got 1")
    refused(mega("-f", rows, "-m", folder, "--pair", "--column", "text"), "two columns with --pair", code=2)


def test_tags_of_words(save) -> None:
    folder = save(MegaForTokenClassification, "tags", id2label={0: "O", 1: "B-X", 2: "I-X"})
    (found,) = answers(mega(ONE, "-m", folder, "--json"))
    assert [word["word"] for word in found["words"]] == ["A", "whale", "swam", "under", "the", "ship", "."]
    assert [ONE[word["start"] : word["end"]] for word in found["words"]] == [word["word"] for word in found["words"]]
    assert {word["tag"] for word in found["words"]} <= {"O", "B-X", "I-X"}
    shown = mega(ONE, TWO, "-m", folder)
    assert shown.exit_code == 0
    for word in found["words"]:
        assert word["word"] in shown.stdout and f"{word['score']:.1%}" in shown.stdout
    refused(mega(f"{ONE}\t{TWO}", "-m", folder, "--pair"), "--pair", "tags the words of single texts")


def test_mistakes(save, tiny_checkpoint: Path, tmp_path: Path) -> None:
    refused(mega(ONE), "Missing option", "--model", code=2)
    refused(mega(ONE, "-m", tiny_checkpoint), "is a masked language model", "cannot classify texts or tag words")
    folder = save(MegaForSequenceClassification, "single", relative_positional_bias="simple", max_positions=16)
    refused(mega(" ", "-m", folder), "is empty", code=2)
    refused(mega(ONE, "-m", folder, "--threshold", 2), "--threshold", code=2)
    refused(mega(ONE, TWO * 3, "-m", folder), "takes at most 16; give --max-length 16")
    assert answers(mega(TWO * 3, "-m", folder, "--max-length", 16, "--json"))
    refused(mega(ONE, "-m", tmp_path / "nowhere"), "there is no such folder")
