"""Attributions: complete, captum's own, where they were planted, and whatever the text is."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import regex
import torch
from transformers import AutoTokenizer

from mega_transformers import (
    MegaConfig,
    MegaForCausalLM,
    MegaForMaskedLM,
    MegaForSequenceClassification,
    MegaForTokenClassification,
)
from mega_transformers.errors import RecipeError
from mega_transformers.interpret.attribution import attribute, questions

captum_attr = pytest.importorskip("captum.attr")

ONE = "The <mask> of the United States gave a speech."
TWO = "A <mask> swam under the <mask>; nobody had seen it."
PLAIN = "The captain of the ship gave an order"
TEXTS = [
    ONE,
    "  <mask>  spaces\tand \n lines  ",
    "é e\u0301 日本語 👩‍🚀🇪🇸 नमस्ते <mask>",
    "<mask>\x00\x1b[31m\ufeff\u202e",
    "ships<mask>s</s><s>ships",
]


def small(kind: type, folder: Path, **fields):
    """A model with random weights of the sizes of a checkpoint, and its tokenizer."""
    torch.manual_seed(0)
    config = MegaConfig.from_pretrained(folder, initializer_range=0.3, **fields)
    return kind(config).eval(), AutoTokenizer.from_pretrained(folder)


def classifier_of(folder: Path, **fields) -> MegaForSequenceClassification:
    labels = {0: "order", 1: "speech", 2: "whale"}
    return small(MegaForSequenceClassification, folder, **{"id2label": labels, **fields})[0]


@pytest.fixture(scope="module")
def masked(tiny_checkpoint: Path):
    return small(MegaForMaskedLM, tiny_checkpoint)


@pytest.fixture(scope="module")
def causal(tiny_causal_checkpoint: Path):
    return small(MegaForCausalLM, tiny_causal_checkpoint)


@pytest.fixture(scope="module")
def classifier(tiny_checkpoint: Path):
    return classifier_of(tiny_checkpoint), AutoTokenizer.from_pretrained(tiny_checkpoint)


def log_probabilities(model, tokenizer, text: str, place: int | None = None) -> torch.Tensor:
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0]
    if place is None and logits.dim() == 2:
        place = ids[0].tolist().index(tokenizer.mask_token_id)
    return (logits if logits.dim() == 1 else logits[place]).log_softmax(-1)


@pytest.mark.parametrize("name", ["masked", "causal", "classifier"])
def test_scores_add_up_in_double_precision(name: str, request: pytest.FixtureRequest) -> None:
    model, tokenizer = request.getfixturevalue(name)
    model = copy.deepcopy(model).double()
    text = ONE if name == "masked" else PLAIN
    (found,) = attribute(model, tokenizer, text, tolerance=1e-3)
    expected = log_probabilities(model, tokenizer, text, -1 if name == "causal" else None).max().item()
    assert found.value == pytest.approx(expected, rel=1e-9)
    assert found.probability == pytest.approx(math.exp(expected), rel=1e-9)
    assert abs(found.value - found.baseline_value) > 1e-2
    assert found.error <= 1e-3
    assert sum(found.scores) == pytest.approx(found.value - found.baseline_value, rel=1e-3)


@pytest.mark.parametrize("left, right", [(0, 0), (5, 0), (0, 5)])
@pytest.mark.parametrize("activation", ["softmax", "laplace"])
def test_scores_are_captums_whatever_the_padding(
    tiny_checkpoint: Path, activation: str, left: int, right: int
) -> None:
    """Those of its method for ids, from a baseline of masks, for a row that is padded."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    model = classifier_of(tiny_checkpoint, attention_activation=activation).double()
    (found,) = attribute(model, tokenizer, PLAIN, "speech", steps=16, max_steps=16)
    ids = tokenizer(PLAIN)["input_ids"]
    pad = tokenizer.pad_token_id
    row = torch.tensor([[pad] * left + ids + [pad] * right])
    blank = [ids[0], *[tokenizer.mask_token_id] * (len(ids) - 2), ids[-1]]
    baseline = torch.tensor([[pad] * left + blank + [pad] * right])
    mask = torch.tensor([[0] * left + [1] * len(ids) + [0] * right])
    method = captum_attr.LayerIntegratedGradients(
        lambda ids: model(ids, attention_mask=mask.expand(len(ids), -1)).logits.log_softmax(-1)[:, 1],
        model.mega.embedding_layer.word_embeddings,
    )
    expected = method.attribute(row, baselines=baseline, n_steps=16).sum(-1)[0, left : left + len(ids)].tolist()
    assert found.scores == pytest.approx(expected[1:-1], rel=1e-6, abs=1e-9)
    assert max(map(abs, found.scores)) > 1e-2


def test_scores_depend_on_no_batch(masked) -> None:
    (alone,) = attribute(*masked, ONE, tokens_at_once=1)
    (together,) = attribute(*masked, ONE, tokens_at_once=10**9)
    assert alone.steps == together.steps
    assert alone.scores == pytest.approx(together.scores, rel=1e-3, abs=1e-5)


def test_of_tokens_that_are_all_the_same_but_one_that_one_has_the_score(classifier) -> None:
    """Planted: where every embedding is the mask's but that of " whale", nothing else can have an effect."""
    model, tokenizer = copy.deepcopy(classifier[0]), classifier[1]
    (whale,) = tokenizer.encode(" whale", add_special_tokens=False)
    weight = model.get_input_embeddings().weight.data
    weight[5:whale] = weight[tokenizer.mask_token_id]
    weight[whale + 1 :] = weight[tokenizer.mask_token_id]
    (found,) = attribute(model, tokenizer, "The captain of the whale gave an order")
    planted = found.pieces.index(" whale")
    assert found.scores[planted] == pytest.approx(found.value - found.baseline_value, rel=0.011)
    assert abs(found.scores[planted]) > 1e-4
    assert all(score == 0 for index, score in enumerate(found.scores) if index != planted)


class OneToken(torch.nn.Module):
    """A number that is linear in the embedding of one token: y = w . x_place."""

    def __init__(self, size: int, place: int) -> None:
        super().__init__()
        self.embeddings, self.weight = torch.nn.Embedding(size, 4), torch.nn.Parameter(torch.randn(4))
        self.place = place
        self.config = SimpleNamespace(model_type="linear", problem_type="regression", num_labels=1, id2label={0: "y"})
        self.device = torch.device("cpu")

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.embeddings

    def forward(self, inputs_embeds: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=inputs_embeds[:, self.place] @ self.weight[:, None])


@pytest.mark.parametrize("baseline", [None, "<pad>"])
def test_of_a_linear_model_scores_are_exact_in_one_step(masked, baseline: str | None) -> None:
    tokenizer = masked[1]
    torch.manual_seed(0)
    model = type("MegaForSequenceClassification", (OneToken,), {})(len(tokenizer), place=3)
    (found,) = attribute(model, tokenizer, PLAIN, steps=1, baseline=baseline)
    embeddings = model.embeddings.weight.detach()
    token = tokenizer(PLAIN)["input_ids"][3]
    blank = baseline or "<mask>"
    expected = (embeddings[token] - embeddings[tokenizer.convert_tokens_to_ids(blank)]) @ model.weight.detach()
    assert found.baseline_token == blank
    assert found.probability is None and found.steps == 1 and found.error < 1e-5
    assert found.scores[2] == pytest.approx(expected.item(), rel=1e-5)  # <s> has no piece
    assert [index for index, score in enumerate(found.scores) if score] == [2]
    assert found.strongest() == [2]


def test_steps_are_doubled_until_scores_add_up(masked) -> None:
    (rough,) = attribute(*masked, ONE, steps=1, max_steps=1)
    assert rough.steps == 1 and rough.error > 0.01
    seen: list[tuple[int, int]] = []
    (found,) = attribute(*masked, ONE, steps=1, watch=lambda done, total: seen.append((done, total)))
    assert found.error <= 0.01
    assert [done for done, total in seen if done == total] == [2**power for power in range(found.steps.bit_length())]
    (bounded,) = attribute(*masked, ONE, steps=3, max_steps=11, tolerance=0)
    assert bounded.steps == 6 and bounded.error > 0


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", ["masked", "causal"])
def test_pieces_are_the_text_in_whole_characters(name: str, text: str, request: pytest.FixtureRequest) -> None:
    model, tokenizer = request.getfixturevalue(name)
    (found,) = attribute(model, tokenizer, text, steps=2, max_steps=2)
    assert found.text == text
    assert len(found.pieces) == len(found.scores)
    ends = {match.end() for match in regex.finditer(r"\X", text)}
    length = 0
    for piece in found.pieces:
        length += len(piece)
        assert piece and length in ends
    assert sum(found.scores) == pytest.approx(
        sum(attribute(model, tokenizer, text, steps=2, max_steps=2, tokens_at_once=1)[0].scores), rel=1e-3, abs=1e-4
    )
    assert len(found.pieces) > 1
    if name == "masked":
        assert "<mask>" in found.pieces[found.place]


def test_a_character_of_several_tokens_is_one_piece(masked) -> None:
    model, tokenizer = masked
    assert len(tokenizer.encode("語", add_special_tokens=False)) > 1
    (found,) = attribute(model, tokenizer, "A語👩‍🚀 <mask>", steps=1, max_steps=1)
    assert found.pieces == ("A", "語", "👩‍🚀", " <mask>")


def test_targets_are_the_likeliest_or_the_one_given(masked) -> None:
    model, tokenizer = masked
    predicted = log_probabilities(model, tokenizer, ONE)
    (found,) = attribute(model, tokenizer, ONE, steps=1, max_steps=1)
    assert found.value == pytest.approx(predicted.max().item(), rel=1e-4)
    assert tokenizer.convert_tokens_to_ids(tokenizer.tokenize(found.target)) == [predicted.argmax()]
    with_space, without = (tokenizer.encode(form, add_special_tokens=False)[0] for form in (" s", "s"))
    (spaced,) = attribute(model, tokenizer, ONE, " s", steps=1, max_steps=1)
    assert (spaced.target, spaced.value) == (" s", pytest.approx(predicted[with_space].item(), rel=1e-4))
    (either,) = attribute(model, tokenizer, ONE, "s", steps=1, max_steps=1)
    assert either.value == pytest.approx(max(predicted[with_space], predicted[without]).item(), rel=1e-4)
    assert either.target == (" s" if predicted[with_space] > predicted[without] else "s")


def test_every_mask_has_its_attribution(masked) -> None:
    found = attribute(*masked, TWO, ["s", "ship"], steps=1, max_steps=1)
    assert [one.target.strip() for one in found] == ["s", "ship"]
    masks = [index for index, piece in enumerate(found[0].pieces) if "<mask>" in piece]
    assert [one.place for one in found] == masks
    assert all(one.scores[place] == 0 for one in found for place in masks)
    assert [one.target.strip() for one in attribute(*masked, TWO, "s", steps=1, max_steps=1)] == ["s", "s"]


def test_a_next_word_is_explained_by_an_open_text(causal) -> None:
    model, tokenizer = causal
    (found,) = attribute(model, tokenizer, PLAIN, steps=1, max_steps=1)
    (closed,) = attribute(model, tokenizer, PLAIN + "</s>", steps=1, max_steps=1)
    assert found.place is None
    assert found.value == pytest.approx(log_probabilities(model, tokenizer, PLAIN, -1).max().item(), rel=1e-4)
    assert closed.value == found.value and closed.scores == found.scores


def test_a_text_of_many_chunks(causal, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = causal
    text = " ".join([PLAIN] * 200)
    most = 0
    forward = type(model).forward

    def watched(self, *arguments, inputs_embeds, **options):
        nonlocal most
        most = max(most, inputs_embeds.shape[0] * inputs_embeds.shape[1])
        return forward(self, *arguments, inputs_embeds=inputs_embeds, **options)

    monkeypatch.setattr(type(model), "forward", watched)
    (found,) = attribute(model, tokenizer, text, steps=4, max_steps=4)
    assert found.text == text and len(found.pieces) > 1500
    assert most < 4096
    assert all(map(math.isfinite, found.scores))


def test_classes_several_labels_and_numbers(tiny_checkpoint: Path, classifier) -> None:
    model, tokenizer = classifier
    predicted = log_probabilities(model, tokenizer, PLAIN)
    (likeliest,) = attribute(model, tokenizer, PLAIN)
    assert likeliest.target == model.config.id2label[int(predicted.argmax())]
    (whale,) = attribute(model, tokenizer, PLAIN, "whale")
    assert (whale.target, whale.place, whale.measure) == ("whale", None, "log-probability")
    assert whale.value == pytest.approx(predicted[2].item(), rel=1e-4)
    ids = torch.tensor([tokenizer(PLAIN)["input_ids"]])
    several = classifier_of(tiny_checkpoint, problem_type="multi_label_classification")
    (found,) = attribute(several, tokenizer, PLAIN, "speech")
    assert found.probability == pytest.approx(several(ids).logits[0, 1].sigmoid().item(), rel=1e-4)
    number = classifier_of(tiny_checkpoint, id2label={0: "grade"})
    (found,) = attribute(number, tokenizer, PLAIN)
    assert (found.probability, found.measure) == (None, "value")
    assert found.value == pytest.approx(number(ids).logits.item(), rel=1e-4)
    assert found.error <= 0.01


def test_the_model_is_left_as_it_was(masked) -> None:
    model, tokenizer = copy.deepcopy(masked[0]), masked[1]
    model.train()
    model.mega.layers[0].eval()
    parameters = dict(model.named_parameters())
    frozen = parameters["mlm_head.bias"].requires_grad_(False)
    model.get_input_embeddings().weight.grad = torch.ones_like(model.get_input_embeddings().weight)
    before = copy.deepcopy(model)
    found = attribute(model, tokenizer, ONE)
    with pytest.raises(ZeroDivisionError):
        attribute(model, tokenizer, ONE, watch=lambda done, total: 1 / 0)
    assert found == attribute(masked[0], tokenizer, ONE)  # without dropout
    assert [module.training for module in model.modules()] == [module.training for module in before.modules()]
    for (name, now), old in zip(model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(now, old) and now.requires_grad == old.requires_grad == (now is not frozen)
        assert now.grad is None or torch.equal(now.grad, torch.ones_like(now)), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_16_bit_models_are_float32(masked, dtype: torch.dtype) -> None:
    model, tokenizer = copy.deepcopy(masked[0]).to(dtype), masked[1]
    types = {name: weights.dtype for name, weights in model.named_parameters()}
    assert attribute(model, tokenizer, ONE) == attribute(copy.deepcopy(model).float(), tokenizer, ONE)
    assert {name: weights.dtype for name, weights in model.named_parameters()} == types
    assert dtype in types.values()


@pytest.mark.parametrize(
    "name, text, target, message",
    [
        ("masked", "no mask", None, "no mask in 'no mask': write <mask>"),
        ("masked", "<mask>", None, "'<mask>' has only special tokens"),
        ("masked", ONE, "qqqq", "target 'qqqq' is not one token of the model but 4: 'q', 'q', 'q', 'q'"),
        ("masked", ONE, "", "target '' is empty"),
        ("masked", ONE, ["a", "s"], "2 targets for 'The <mask> of"),
        ("masked", TWO, ["a", "s", "t"], "which has 2 masks; give one, or one for each"),
        ("causal", "", None, "'' has only special tokens"),
        ("classifier", PLAIN, "speach", "target 'speach' is not a label of the model; did you mean speech?"),
        ("classifier", PLAIN, "xyz", "the model's labels are order, speech, whale"),
    ],
)
def test_what_cannot_be_explained_is_a_sentence(
    name: str, text: str, target, message: str, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(RecipeError) as error:
        questions(*request.getfixturevalue(name), text, target)
    assert message in str(error.value)


def test_baselines(masked, causal) -> None:
    model, tokenizer = masked
    with pytest.raises(RecipeError, match="baseline '<mas>' is not a token of the model; did you mean <mask>"):
        questions(model, tokenizer, ONE, baseline="<mas>")
    assert questions(model, tokenizer, ONE)[0].blank == tokenizer.mask_token_id
    bare = copy.deepcopy(causal[1])
    bare.mask_token = None
    assert questions(causal[0], bare, PLAIN)[0].blank == bare.pad_token_id
    bare.pad_token = None
    (found,) = attribute(causal[0], bare, PLAIN, steps=1, max_steps=1)
    assert found.baseline_token is None
    vectors = causal[0].get_input_embeddings()(torch.tensor([bare(PLAIN)["input_ids"]]))
    vectors[:, 1:] = 0  # <s> stays
    expected = causal[0](inputs_embeds=vectors).logits[0, -1].log_softmax(-1)
    predicted = log_probabilities(*causal, PLAIN, -1).argmax()
    assert found.baseline_value == pytest.approx(expected[predicted].item(), rel=1e-4)


def test_models_that_cannot_be_explained(masked, causal, tiny_checkpoint: Path) -> None:
    tagger = MegaForTokenClassification(MegaConfig.from_pretrained(tiny_checkpoint))
    with pytest.raises(RecipeError, match="MegaForTokenClassification cannot be explained; give a masked or causal"):
        attribute(tagger, masked[1], ONE)
    limited = copy.deepcopy(masked[0])
    limited.config.relative_positional_bias = "simple"
    with pytest.raises(RecipeError, match=r"has 204 tokens, but the model takes at most 128; shorten it"):
        attribute(limited, masked[1], "whale " * 200 + "<mask>")
    broken = copy.deepcopy(causal[0])
    broken.get_input_embeddings().weight.data.fill_(math.nan)
    with pytest.raises(RecipeError, match="output is not finite for 'The captain"):
        attribute(broken, causal[1], PLAIN)
