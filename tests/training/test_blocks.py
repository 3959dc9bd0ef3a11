"""Running text as blocks: packing, documents that do not see each other, masks."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, IterableDataset
from tiny import CAUSAL, tiny_config

from mega_transformers import MegaForCausalLM, MegaForMaskedLM
from mega_transformers.errors import RecipeError
from mega_transformers.training import blocks
from mega_transformers.training.blocks import MaskingCollator, NextTokenCollator, positions, uniform
from mega_transformers.training.recipe import CausalLMRecipe, Masking, parse
from mega_transformers.training.tokenizer import byte_tokenizer

START, END = 0, 2


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer(32)


def recipe_of(length=8, packing="isolated", **source):
    values = {"name": "n", "task": "causal-lm", "sequence_length": length, "packing": packing}
    text = {"name": "T", "license": "L", "train": "a.txt", "documents": "lines", **source}
    return parse(CausalLMRecipe, {**values, "data": [text], "tokenizer": {"kind": "bytes"}})


def line_of(texts, tokenizer):
    """All documents as one line of ids."""
    return [token for text in texts for token in (START, *tokenizer(text, add_special_tokens=False).input_ids, END)]


def texts(count, seed=0):
    generator = np.random.default_rng(seed)
    return [
        "".join(generator.choice(list("abcd "), size=size)).strip() or "a" for size in generator.integers(1, 19, count)
    ]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(texts(40)) + "\n")
    return tmp_path


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("packing", ["isolated", "wrapped"])
def test_blocks_are_the_line_cut_into_equal_parts(folder, tokenizer, packing, streaming):
    recipe = recipe_of(packing=packing)
    recipe.data[0].streaming = streaming
    rows = blocks.blocks_of(recipe, "train", tokenizer, folder)
    assert isinstance(rows, IterableDataset if streaming else Dataset)
    got = list(rows)
    line = line_of(texts(40), tokenizer)
    assert [row["index"] for row in got] == list(range(len(line) // 8))
    assert np.concatenate([row["input_ids"] for row in got]).tolist() == line[: len(line) // 8 * 8]
    assert all(("position_ids" in row) == (packing == "isolated") for row in got)
    if packing == "isolated":
        for row in got:
            expected, place = [], 0
            for token in np.asarray(row["input_ids"]).tolist():
                place = 0 if token == START else place
                expected.append(place)
                place += 1
            assert np.asarray(row["position_ids"]).tolist() == expected


def test_positions_by_hand():
    assert positions(np.array([0, 0, 1, 0, 1, 1, 0])).tolist() == [0, 1, 0, 1, 0, 0, 1]
    assert positions(np.array([1, 0, 0])).tolist() == [0, 1, 2]


def test_sources_follow_each_other_and_batches_do_not_show(tmp_path, tokenizer, monkeypatch):
    several = [texts(7, seed) for seed in range(3)]
    values = recipe_of(length=8).model_dump() | {"data": []}
    for number, some in enumerate(several):
        (tmp_path / f"{number}.txt").write_text("\n".join(some))
        values["data"].append({"name": "T", "license": "L", "train": f"{number}.txt", "documents": "lines"})
    rows = blocks.blocks_of(parse(CausalLMRecipe, values), "train", tokenizer, tmp_path)
    line = line_of([text for some in several for text in some], tokenizer)
    assert np.concatenate(rows["input_ids"]).tolist() == line[: len(line) // 8 * 8]
    # a document longer than several blocks
    (tmp_path / "0.txt").write_text("x" * 50)
    rows = blocks.blocks_of(recipe_of(train="0.txt"), "train", tokenizer, tmp_path)
    assert len(rows) == 6 and np.array(rows["position_ids"]).tolist() == [list(range(8))] * 6


def test_texts_that_fill_no_block_are_told(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("abc\n")
    with pytest.raises(RecipeError, match="the train texts are shorter than one block of sequence_length=8 tokens"):
        blocks.blocks_of(recipe_of(), "train", tokenizer, tmp_path)
    assert blocks.blocks_of(recipe_of(), "test", tokenizer, tmp_path) is None


def rows_with(ids, isolated):
    ids = np.array(ids)
    rows = [{"index": number, "input_ids": row} for number, row in enumerate(ids)]
    if isolated:
        for row in rows:
            row["position_ids"] = positions(row["input_ids"] == START)
    return rows


def test_nothing_predicts_the_start_of_a_document():
    ids = [[7, 8, END, START, 9, END, START, 5]]
    assert NextTokenCollator()(rows_with(ids, True))["labels"].tolist() == [[-100, 8, END, -100, 9, END, -100, 5]]
    wrapped = NextTokenCollator()(rows_with(ids, False))
    assert wrapped.keys() == {"input_ids", "labels"}
    assert wrapped["labels"].tolist() == [[-100, *ids[0][1:]]]


def pieces_of(row, place):
    """The documents of a block, as slices."""
    starts = [index for index, position in enumerate(place.tolist()) if position == 0] + [len(row)]
    return [slice(start, end) for start, end in pairwise(starts)]


VARIANTS = {
    "full": {},
    "chunks": {"use_chunking": True, "chunk_size": 8},
    "simple-bias": {"relative_positional_bias": "simple"},
    "truncated-ema": {"truncation": 5},
}


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_a_packed_block_is_its_documents_one_by_one(kind, fields, tokenizer):
    """Loss and gradients, in float64; where chunks begin anew with every document."""
    torch.manual_seed(0)
    vocabulary = len(tokenizer)
    sizes = {"vocab_size": vocabulary, "pad_token_id": 1, "max_positions": 64, "initializer_range": 0.5, **fields}
    if kind == "causal":
        model = MegaForCausalLM(tiny_config(**CAUSAL, **sizes)).double()
        collate = NextTokenCollator()
    else:
        model = MegaForMaskedLM(tiny_config(**sizes)).double()
        collate = MaskingCollator(tokenizer, Masking(probability=0.6), seed=1, epoch=SimpleNamespace(number=0))
    model.eval()
    generator = np.random.default_rng(3)
    ids = generator.integers(5, vocabulary, (3, 24))
    for row, ends in zip(ids, ([3, 11], [0, 17, 18, 22], [9])):
        row[ends] = START
    batch = collate(rows_with(ids, True))

    def gradients():
        found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
        model.zero_grad()
        return found

    packed = model(**batch).loss
    packed.backward()
    got = gradients()

    total, count = 0.0, 0
    for row, labels, place in zip(batch["input_ids"], batch["labels"], batch["position_ids"]):
        for piece in pieces_of(row, place):
            logits = model(input_ids=row[None, piece]).logits[0]
            wanted = labels[piece]
            if kind == "causal":
                logits, wanted = logits[:-1], wanted[1:]
            total = total + F.cross_entropy(logits, wanted, reduction="sum", ignore_index=-100)
            count += int((wanted != -100).sum())
    assert count == int((batch["labels"] != -100).sum()) > 20
    (total / count).backward()
    assert packed.item() == pytest.approx((total / count).item(), rel=1e-10)
    expected = gradients()
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-10, msg=name)

    # as one long text, the documents would see each other
    wrapped = {name: value for name, value in batch.items() if name != "position_ids"}
    assert abs(model(**wrapped).loss.item() - packed.item()) > 1e-3


def collator(tokenizer, seed=5, epoch=0, **masking):
    return MaskingCollator(tokenizer, Masking(**masking), seed, SimpleNamespace(number=epoch))


@pytest.fixture(scope="module")
def many(tokenizer):
    generator = np.random.default_rng(0)
    ids = generator.integers(0, len(tokenizer), (400, 64))
    ids[:, 0] = START
    return rows_with(ids, True)


def test_masks_are_the_blocks_own(tokenizer, many):
    collate = collator(tokenizer, probability=0.5, mask=0.6, random=0.3)
    together = collate(many[:9])
    for order in ([4], [8, 0, 4], [4, 4, 1]):
        some = collate([many[index] for index in order])
        for name in ("input_ids", "labels"):
            assert some[name].equal(together[name][order])
    assert not collator(tokenizer, probability=0.5, epoch=1)(many[:9])["labels"].equal(together["labels"])
    assert not collator(tokenizer, probability=0.5, seed=6)(many[:9])["labels"].equal(together["labels"])
    assert collator(tokenizer, probability=0.5, mask=0.6, random=0.3)(many[:9])["labels"].equal(together["labels"])
    # evaluations have masks of their own, the same in every epoch
    fixed = MaskingCollator(tokenizer, Masking(probability=0.9, evaluation_probability=0.1), 5, None)
    assert 0.05 < (fixed(many)["labels"] != -100).float().mean() < 0.15


def test_as_many_tokens_are_hidden_as_the_recipe_says(tokenizer, many):
    collate = collator(tokenizer, probability=0.3, mask=0.8, random=0.1)
    before = torch.from_numpy(np.stack([row["input_ids"] for row in many]))
    batch = collate(many)
    ids, labels = batch["input_ids"], batch["labels"]
    special = torch.isin(before, torch.tensor(tokenizer.all_special_ids))
    predicted = labels != -100
    assert special.sum() > 400 and not (predicted & special).any()
    assert ids[~predicted].equal(before[~predicted]) and labels[predicted].equal(before[predicted])

    def is_about(found, probability, count):
        assert abs(found / count - probability) < 5 * (probability * (1 - probability) / count) ** 0.5

    hidden = int(predicted.sum())
    is_about(hidden, 0.3, int((~special).sum()))
    masked = predicted & (ids == tokenizer.mask_token_id)
    kept = predicted & (ids == before)
    replaced = predicted & ~masked & ~kept
    # one random token in so many is the mask token, or the right one
    is_about(int(masked.sum()), 0.8 + 0.1 / len(tokenizer), hidden)
    is_about(int(replaced.sum()), 0.1 * (1 - 2 / len(tokenizer)), hidden)
    is_about(int(kept.sum()), 0.1 + 0.1 / len(tokenizer), hidden)
    # places are hidden independently of each other
    pairs = predicted[:, 2:-1] & predicted[:, 3:]
    there = ~special[:, 2:-1] & ~special[:, 3:]
    is_about(int((pairs & there).sum()), 0.09, int(there.sum()))


def test_a_short_row_is_never_without_a_hidden_token(tokenizer):
    ids = np.full((50, 4), 100)
    ids[:, 0] = START
    batch = collator(tokenizer, probability=0.001)(rows_with(ids, True))
    assert (batch["labels"] != -100).sum(1).tolist() == [1] * 50
    assert len(set((batch["labels"] != -100).int().argmax(1).tolist())) == 3
    # nothing that could be hidden
    only_special = collator(tokenizer, probability=0.5)(rows_with(np.full((2, 4), START), True))
    assert (only_special["labels"] == -100).all()


def test_numbers_are_uniform_and_differ():
    first = uniform(0, 0, np.arange(300), 100)
    assert first.min() >= 0 and first.max() < 1
    counts, _ = np.histogram(first, bins=20, range=(0, 1))
    assert ((counts - 1500) ** 2 / 1500).sum() < 45  # chi-square, 19 degrees of freedom: p = 0.0007
    assert len(np.unique(first)) == first.size
    for other in (uniform(1, 0, np.arange(300), 100), uniform(0, 1, np.arange(300), 100)):
        assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.03
    assert np.array_equal(uniform(0, 0, np.array([7]), 50)[0], first[7, :50])
