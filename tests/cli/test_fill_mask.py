"""`mega fill-mask`: the pipeline's answers, and a message for every mistake."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from answers_of import answers
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM, BertTokenizer, pipeline
from typer.testing import CliRunner, Result

from mega_transformers import MegaConfig, MegaForMaskedLM, MegaModel
from mega_transformers.cli import app, fill_mask

ONE = "The <mask> of the United States gave a speech."
THREE = "A<mask> swam under the <mask>; nobody had <mask> it."


def mega(*arguments: object, stdin: str | None = None) -> Result:
    """On the CPU, whose numbers the tests know."""
    return CliRunner().invoke(app, ["fill-mask", "--device", "cpu", *map(str, arguments)], input=stdin)


def refused(result: Result, *parts: str, code: int = 1) -> None:
    assert result.exit_code == code
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    message = " ".join(result.stderr.replace("│", " ").split())
    for part in parts:
        assert part in message


@pytest.mark.parametrize("text", [ONE, THREE])
def test_answers_are_the_pipelines(tiny_checkpoint: Path, text: str) -> None:
    expected = pipeline("fill-mask", model=str(tiny_checkpoint), device="cpu", dtype=torch.float32)(text, top_k=4)
    if text.count("<mask>") == 1:
        expected = [expected]
    (answer,) = answers(mega(text, "--model", tiny_checkpoint, "--top-k", 4, "--json"))
    assert answer["text"] == text
    assert len(answer["masks"]) == text.count("<mask>")
    for ours, theirs in zip(answer["masks"], expected, strict=True):
        assert [(c["token"], c["token_str"], c["sequence"]) for c in ours] == [
            (c["token"], c["token_str"], c["sequence"]) for c in theirs
        ]
        assert [c["score"] for c in ours] == pytest.approx([c["score"] for c in theirs], rel=1e-5)


def test_tables_show_every_text_and_mask(tiny_checkpoint: Path) -> None:
    result = mega(ONE, THREE, "-m", tiny_checkpoint, "-k", 3)
    assert result.exit_code == 0, result.stderr
    for index in range(3):
        assert f"mask {index + 1} of 3" in result.stdout
    ranks = [line.split()[0] for line in result.stdout.splitlines() if line.strip() and line.split()[0].isdigit()]
    assert ranks == ["1", "2", "3"] * 4
    (answer,) = answers(mega(ONE, "-m", tiny_checkpoint, "-k", 3, "--json"))
    for candidate in answer["masks"][0]:
        assert f"{candidate['score']:.1%}" in result.stdout


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_stdin_is_one_text_per_line(tiny_checkpoint: Path, arguments: list[str]) -> None:
    given = answers(mega(ONE, THREE, "-m", tiny_checkpoint, "--json"))
    piped = answers(mega(*arguments, "-m", tiny_checkpoint, "--json", stdin=f"{ONE}\n\n  {THREE}  \n"))
    assert piped == given


def test_stdin_stands_between_other_texts(tiny_checkpoint: Path) -> None:
    texts = [
        answer["text"]
        for answer in answers(mega("a <mask>", "-", "c <mask>", "-m", tiny_checkpoint, "--json", stdin="b <mask>"))
    ]
    assert texts == ["a <mask>", "b <mask>", "c <mask>"]


def test_mask_stands_for_the_models_own_mask_token(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "ship", "whale", "sea", "##s"]
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(tmp_path)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=12,
    )
    BertForMaskedLM(config).save_pretrained(tmp_path)
    ours = answers(mega("the <mask>", "-m", tmp_path, "--json"))
    assert ours == answers(mega("the [MASK]", "-m", tmp_path, "--json"))
    assert mega("the <mask>", "-m", tmp_path).exit_code == 0
    refused(mega("the ship", "-m", tmp_path), "no mask in 'the ship'", "<mask>", "[MASK]")
    refused(mega("sea " * 20 + "<mask>", "-m", tmp_path), "has 23 tokens", "at most 12")


def test_every_text_is_checked_before_any_is_filled(tiny_checkpoint: Path) -> None:
    refused(mega(ONE, "none here", "-m", tiny_checkpoint), "no mask in 'none here'", "write <mask>")


def test_usage_mistakes(tiny_checkpoint: Path) -> None:
    refused(mega(ONE, "--top-k", 0), "--top-k", code=2)
    refused(mega("-", "-", stdin=ONE), "can be given only once", code=2)
    refused(mega("-", stdin="\n \n"), "stdin holds no text")
    refused(mega(ONE, "-m", tiny_checkpoint, "-k", 10**6), "--top-k 1000000", "360 tokens")
    refused(mega("\udcff <mask>", "-m", tiny_checkpoint), "not valid UTF-8")


def test_no_text_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal())
    with pytest.raises(Exception, match="mega fill-mask"):
        fill_mask.fill_mask([])


def test_models_that_cannot_be_used(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def without(*names: str) -> Path:
        folder = tmp_path / "-".join(names)
        shutil.copytree(tiny_checkpoint, folder)
        for name in names:
            (folder / name).unlink()
        return folder

    refused(mega(ONE, "-m", without("config.json")), "--model", "no config.json")
    refused(mega(ONE, "-m", without("model.safetensors")), "cannot load", "model.safetensors")
    refused(mega(ONE, "-m", without("tokenizer.json", "tokenizer_config.json")), "vocab.json and merges.txt missing")
    refused(mega(ONE, "-m", without("tokenizer.json")), "has no tokenizer", "tokenizer.json")
    refused(mega(ONE, "-m", tiny_checkpoint / "config.json"), "expected a folder")
    refused(mega(ONE, "-m", tmp_path / "nowhere"), "there is no such folder")
    broken = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(mega(ONE, "-m", broken), "cannot load", "truncated or corrupt")


def test_hub_id_without_connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    refused(mega(ONE, "-m", "nobody/nothing-of-this-name"), "no such folder", "hub does not answer", "cache")


def test_checkpoint_without_head(tiny_checkpoint: Path, tmp_path: Path) -> None:
    MegaModel.from_pretrained(tiny_checkpoint).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(tmp_path)
    refused(mega(ONE, "-m", tmp_path), "cannot fill masks", "lacks")


def test_tokenizer_of_another_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = MegaConfig.from_pretrained(tiny_checkpoint, vocab_size=100)
    MegaForMaskedLM(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(tmp_path)
    refused(mega(ONE, "-m", tmp_path), "do not belong together", "100")


def test_texts_longer_than_max_positions(tiny_checkpoint: Path, tmp_path: Path) -> None:
    long = "whale " * 200 + "<mask>"
    result = mega(long, "-m", tiny_checkpoint, "--json")
    assert len(answers(result)) == 1
    assert "max_positions=128" in result.stderr
    config = MegaConfig.from_pretrained(tiny_checkpoint, relative_positional_bias="simple")
    MegaForMaskedLM(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(tmp_path)
    refused(mega(long, "-m", tmp_path), "takes at most 128")


def test_half_precision_checkpoints_are_computed_in_float32(tiny_checkpoint: Path, tmp_path: Path) -> None:
    AutoModelForMaskedLM.from_pretrained(tiny_checkpoint, dtype=torch.float16).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(tmp_path)
    assert fill_mask.load_filler(str(tmp_path)).pipeline.model.dtype == torch.float32


@pytest.mark.parametrize(
    ("before", "token", "after", "swallows_space", "expected"),
    [
        ("The ", " ship", " sank", True, "The ship sank"),
        ("The ", "re", " it is", True, "There it is"),
        ("", " The", " ship", True, "The ship"),
        ("The ", "ship", " sank", False, "The ship sank"),
        ("Two ship ", "##s", " sank", False, "Two ships sank"),
        ("a" * 100, " b", " " + "c" * 100, True, "…" + "a" * 48 + " b " + "c" * 47 + "…"),
        ("The ", "\n", "end", True, "The\\nend"),
    ],
)
def test_filled_text(before: str, token: str, after: str, swallows_space: bool, expected: str) -> None:
    assert fill_mask._filled(before, token, after, swallows_space).plain == expected
