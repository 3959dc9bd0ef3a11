"""What the page answers, and the sentence for every mistake."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizer, pipeline

from mega_transformers.cli.generator import Generated
from mega_transformers.cli.runtime import UserError
from mega_transformers.demo import answers, reading
from mega_transformers.demo.models import Served, load_models
from mega_transformers.errors import RecipeError
from mega_transformers.evaluation.streaming import read_tokens

TEXT = "The <mask> of the ship gave an <mask>."


def test_candidates_are_the_pipelines_without_special_tokens(masked: Served) -> None:
    parts, masks = answers.fill(masked, TEXT)
    assert parts == ["The ", " of the ship gave an ", "."]
    expected = pipeline("fill-mask", model=masked.name, device="cpu", dtype=torch.float32)(TEXT, top_k=20)
    special = masked.ready.tokenizer.all_special_ids
    for ours, theirs in zip(masks, expected, strict=True):
        theirs = [found for found in theirs if found["token"] not in special][: answers.CANDIDATES]
        assert [choice.token for choice in ours] == [found["token"] for found in theirs]
        assert [choice.probability for choice in ours] == pytest.approx([found["score"] for found in theirs], rel=1e-5)


def test_a_candidate_takes_the_place_of_its_mask(masked: Served) -> None:
    ship = masked.ready.tokenizer(" ship", add_special_tokens=False)["input_ids"]
    assert len(ship) == 1
    assert answers.put_in(masked, TEXT, 1, ship[0]) == "The <mask> of the ship gave an ship."
    assert answers.put_in(masked, "<mask> gave", 0, ship[0]) == "ship gave"


@pytest.mark.parametrize(("mask", "token"), [(2, 7), (-1, 7), (None, 7), (0, "7"), ("<b>", 7)])
def test_a_click_on_a_text_that_has_changed(masked: Served, mask: object, token: object) -> None:
    with pytest.raises(UserError, match="the text has changed since its masks were filled; fill them again"):
        answers.put_in(masked, TEXT, mask, token)
    with pytest.raises(UserError, match="the model has no token 100000"):
        answers.put_in(masked, TEXT, 0, 100_000)


def test_mask_stands_for_the_models_own(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "ship", "##s"]
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(tmp_path)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertForMaskedLM(BertConfig(vocab_size=len(words), max_position_embeddings=12, **sizes)).save_pretrained(tmp_path)
    (bert,) = load_models([str(tmp_path)], "cpu", "auto")
    assert answers.fill(bert, "the <mask>") == answers.fill(bert, "the [MASK]")
    assert answers.put_in(bert, "the [MASK] <mask>", 0, 7) == "thes <mask>"
    with pytest.raises(UserError, match=r"has 33 tokens, but .* takes at most 12; shorten it"):
        answers.fill(bert, "ship " * 30 + "<mask>")
    with pytest.raises(UserError, match="no mask in 'the ship'"):
        answers.fill(bert, "the ship")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no text yet"),
        (" \n", "there is no text yet"),
        ("a ship", "no mask in 'a ship': write <mask> in place"),
        ("<mask> " * 9, "the text has 9 masks, but the page fills at most 8"),
        ("ship " * 200 + "<mask>", "tokens, but .* takes at most 128; shorten it"),
        ("a" * 20_001, "the text has 20,001 characters, but the page takes at most 20,000"),
        ("half \ud83d <mask>", "is not valid Unicode"),
    ],
)
def test_texts_that_cannot_be_filled(masked: Served, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        answers.fill(masked, text)


def test_control_characters_are_a_text(masked: Served) -> None:
    parts, masks = answers.fill(masked, "\0\x07 <b> \u202e <mask>")
    assert parts[0] == "\0\x07 <b> \u202e "
    assert len(masks[0]) == answers.CANDIDATES


def test_pieces_are_the_text(causal: Served) -> None:
    *pieces, end = answers.write(causal, "The ship", 30, 0, 1)
    assert isinstance(end, Generated)
    assert "".join(pieces) == end.text
    assert len(pieces) > 5
    (again,) = [piece for piece in answers.write(causal, "The ship", 30, 0, 1) if isinstance(piece, Generated)]
    assert again.text == end.text
    assert causal.ready.settings.max_new_tokens == 1  # what visitors choose is theirs alone


def test_closing_ends_the_work(causal: Served) -> None:
    before = threading.active_count()
    pieces = answers.write(causal, "The ship", answers.MAX_NEW_TOKENS, 1, 1)
    next(pieces)
    assert threading.active_count() == before + 1
    pieces.close()
    until = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_an_error_while_writing_is_not_lost(causal: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(causal.model, "generate", fail)
    with pytest.raises(MemoryError):
        list(answers.write(causal, "The ship", 5, 0, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", 5, 0, 1), "there is no text yet"),
        (("a", 0, 0, 1), "the length 0 must be 1 to 500 tokens"),
        (("a", 501, 0, 1), "the length 501 must be 1 to 500 tokens"),
        (("a", 5, -1, 1), "temperature -1 must be 0 to 10"),
        (("a", 5, float("nan"), 1), "temperature nan must be 0 to 10"),
        (("a", 5, 0, 0), "top-p 0 above 0"),
        (("ship " * 3000, 5, 0, 1), "together with the new tokens, .* takes at most 2,048; shorten it"),
    ],
)
def test_prompts_that_cannot_be_continued(causal: Served, arguments: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        next(answers.write(causal, *arguments))


def test_words_are_converted_one_by_one(words: Served) -> None:
    rows, unknown = answers.convert(words, "A whale,\nof  a 'tale'!")
    assert [text for text, _ in rows] == ["A", "whale,", "of", "a", "'tale'!"]
    assert unknown == []
    plain, _ = answers.convert(words, "a whale of a")
    assert [output for _, output in rows[:4]] == [output for _, output in plain]


def test_words_that_cannot_be_converted(words: Served) -> None:
    rows, unknown = answers.convert(words, "ship 日本")
    assert [text for text, _ in rows] == ["ship", "日本"]
    assert unknown == ["日本"]
    with pytest.raises(UserError, match="the text has 51 words, but the page takes at most 50"):
        answers.convert(words, "a " * 51)
    with pytest.raises(UserError, match="has 301 tokens, but the model takes at most"):
        answers.convert(words, "a" * 300)


def test_labels_with_probabilities(classifier: Served) -> None:
    choices = answers.classify(classifier, "The ship left.")
    assert {choice.text for choice in choices} == {"sea", "land", "<b>air</b>"}
    assert sum(choice.probability for choice in choices) == pytest.approx(1, abs=1e-5)
    assert choices == sorted(choices, key=lambda choice: -choice.probability)
    with pytest.raises(UserError, match=r"tokens, but .* takes at most 64; shorten it"):
        answers.classify(classifier, "ship " * 200)


def test_a_causal_model_reads_on(causal: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PIECE", 16)
    text = "The captain of the ship gave an order.\n" * 12
    last = list(reading.read(causal, text))[-1]
    total = len(read_tokens(text, causal.ready.tokenizer, [], "lines")[0]) - 1
    assert last.finished
    assert [point.tokens for point in last.points] == [*range(16, total, 16), total]
    assert all(a.seconds < b.seconds for a, b in zip(last.points, last.points[1:]))
    assert len(last.notes) == 1
    assert [point.tokens for point in last.doublings()][:3] == [16, 32, 64]


def test_a_masked_model_reads_beginnings(masked: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PIECE", 16)
    *_, last = reading.read(masked, "The captain of the ship gave an order.\n" * 60)
    assert [point.tokens for point in last.points] == [16, 32, 64, 128]
    assert last.notes[1:] == (f"{masked.name} takes at most 128 tokens at once, so it reads only these.",)
    *_, last = reading.read(masked, "The ship.")
    assert len(last.points) == 1


def test_the_example_is_long() -> None:
    assert 200_000 < len(reading.example()) < reading.MAX_CHARACTERS


def test_texts_that_cannot_be_read(masked: Served, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the text has 1,000,001 characters, but the page takes at most 1,000,000"):
        next(reading.read(masked, "a" * 1_000_001))
    file = tmp_path / "book.txt"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"the file book\.txt is not valid UTF-8 text"):
        reading.text_of(str(file))
    file.write_text("Ein Schiff über dem Meer", "utf-8")
    assert reading.text_of(str(file)) == "Ein Schiff über dem Meer"


def test_why_a_model_answers(masked: Served, causal: Served, classifier: Served) -> None:
    first, second = answers.explain(masked, TEXT)
    assert first.pieces[first.place] == " <mask>" and second.place > first.place
    best = [choices[0] for choices in answers.fill(masked, TEXT)[1]]
    # what a token is called may differ: here they are bytes
    for found, choice in zip((first, second), best, strict=True):
        assert found.probability == pytest.approx(choice.probability, rel=1e-4)
    for served, text in ((masked, TEXT), (causal, "The ship"), (classifier, "The ship left")):
        for found in answers.explain(served, text):
            assert found.error < 0.01
            assert found.text == text
            assert sum(found.scores) == pytest.approx(found.value - found.baseline_value, rel=0.02)
    (found,) = answers.explain(classifier, "The ship left")
    assert found.target == answers.classify(classifier, "The ship left")[0].text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no text yet"),
        ("a ship", "no mask in 'a ship'"),
        ("<mask> " * 9 + "ship", "the text has 9 masks, but the page fills at most 8"),
    ],
)
def test_what_cannot_be_explained(masked: Served, text: str, message: str) -> None:
    with pytest.raises((UserError, RecipeError), match=message):
        answers.explain(masked, text)


def test_a_text_too_long_to_explain(causal: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MAX_EXPLAINED", 3)
    with pytest.raises(UserError, match="tokens, but the page explains at most 3; shorten it"):
        answers.explain(causal, "The ship left the port.")
