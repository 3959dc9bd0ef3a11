"""Which tokens led to a model's answer: integrated gradients over a text's embeddings, with captum.

Integrated gradients (Sundararajan, Taly and Yan 2017, arXiv 1703.01365) follow a model's output f along the straight
line from a baseline to the input, and give each token the contribution of its embedding. They are complete (their
proposition 1): the scores add up to f(input) - f(baseline). Here f is a log-probability, so the sum is the logarithm
of the factor by which the text changes the probability of the answer. Scores of a logit would have no such meaning:
adding the same number to all logits changes no answer, but would change scores.

The baseline is the text with all its tokens replaced by a single one. Only masks and the tokens for start and end
stay; they are equal in both and so have a score of exactly 0. The replacement is the mask token, which means no word.
A tokenizer without one gives the padding token. That is the second choice: no model learns a vector for padding. In
many models it is zero, and a norm can turn zero into any direction: the output then jumps at the start of the line,
and a thousand steps may be too few. Without either token, the vectors are zero, the paper's baseline for texts.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import regex
import torch
import torch.nn.functional as F
from transformers.models.auto import modeling_auto

from ..errors import RecipeError, check_package, did_you_mean, shortened
from ..evaluation.streaming import text_limit
from .defaults import MAX_STEPS, STEPS, TOKENS_AT_ONCE, TOLERANCE

MASKED, CAUSAL, CLASSIFIER = "masked", "causal", "classifier"
TABLES = {
    CLASSIFIER: "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    MASKED: "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    CAUSAL: "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
}
"""Kind of model -> transformers' table of the names of such classes."""

UNFINISHED = "\ufffd"

Watch = Callable[[int, int], None]


@dataclass(frozen=True)
class Attribution:
    """What each piece of a text contributes to an answer.

    Args:
        pieces: The text in order, a token each with the white space before it. Several tokens of one character are one
            piece with the sum of their scores.
        scores: Score of each piece, in the unit of `value`: above 0 if it speaks for the answer, below 0 if it speaks
            against it. Masks have 0.
        place: Index of the mask that the answer fills; None for a next word or a class.
        target: The answer: a token with the space before it, or a label.
        probability: Probability of the answer; None in regression.
        value: Log-probability of the answer in nats, or the number in regression.
        baseline_value: The same for the baseline.
        baseline_token: Token that replaces the tokens of the text in the baseline; None for a vector of zeros.
        error: Completeness error: |sum of scores - change| / |change| for change = value - baseline_value; 0 for an
            exact integral.
        steps: Points at which the gradient was computed.
    """

    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    place: int | None
    target: str
    probability: float | None
    value: float
    baseline_value: float
    baseline_token: str | None
    error: float
    steps: int

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.pieces)

    @property
    def measure(self) -> str:
        """The unit of `value`."""
        return "value" if self.probability is None else "log-probability"

    def strongest(self, count: int | None = None) -> list[int]:
        """Indices of at most `count` pieces by the size of their scores, largest first, without scores of 0."""
        order = sorted(range(len(self.scores)), key=lambda index: -abs(self.scores[index]))
        return [index for index in order if self.scores[index]][:count]


@dataclass(frozen=True)
class Question:
    """A text as a model reads it, and the output to explain.

    Args:
        text: The text.
        ids: (L,) ids of its tokens, with those that the tokenizer adds.
        kept: (L,) whether a token stays as it is in the baseline.
        pieces: For each piece its end in the text, and its tokens.
        place: Token at which the output is read: a mask, or -1 for the last one; None for a class.
        outputs: The outputs to choose the most likely from; empty for all.
        blank: Token that replaces others in the baseline; None for a vector of zeros.
    """

    text: str
    ids: tuple[int, ...]
    kept: tuple[bool, ...]
    pieces: tuple[tuple[int, tuple[int, ...]], ...]
    place: int | None
    outputs: tuple[int, ...]
    blank: int | None


def attribute(
    model: Any,
    tokenizer: Any,
    text: str,
    target: str | Sequence[str] | None = None,
    baseline: str | None = None,
    **settings: Any,
) -> list[Attribution]:
    """Explains what a model says about a text, by integrated gradients (arXiv 1703.01365).

    Args:
        model: A masked or causal language model or a text classifier of transformers that takes `inputs_embeds`. It is
            not changed; a model in 16 bits is copied, since gradients are computed in float32.
        tokenizer: Its tokenizer, a fast one.
        text: The text, with one or more masks for a masked language model.
        target: What to explain: a word of one token, or a label. Default: the most likely answer. For a text
            with several masks, one for all or one for each.
        baseline: Token that replaces the others in the baseline. Default: the mask, or padding if there is no mask.
        settings: As in `explain`.

    Returns:
        One attribution for each mask, in their order; for other models a single one.

    Raises:
        RecipeError: for a model, text or target that cannot be explained, and if captum is missing.
    """
    asked = questions(model, tokenizer, text, target, baseline)
    return [explain(model, tokenizer, question, **settings) for question in asked]


def predicts(model: Any) -> str:
    """What kind of answer a model gives: masked tokens, next tokens or classes (MASKED, CAUSAL, CLASSIFIER).

    Args:
        model: A model of transformers.

    Raises:
        RecipeError: for other models.
    """
    name = type(model).__name__
    for kind, table in TABLES.items():
        if name in getattr(modeling_auto, table).values():
            return kind
    raise RecipeError(
        f"{name} cannot be explained; give a masked or causal language model, or a model that classifies texts"
    )


def questions(
    model: Any,
    tokenizer: Any,
    text: str,
    target: str | Sequence[str] | None = None,
    baseline: str | None = None,
) -> list[Question]:
    """Checks a text and finds the outputs to explain, without running the model: a question for each mask.

    Args:
        model, tokenizer, text, target, baseline: As in `attribute`.

    Raises:
        RecipeError: as `attribute`.
    """
    kind = predicts(model)
    if not tokenizer.is_fast:
        raise RecipeError("the tokenizer has no tokenizer.json, so the places of tokens in a text are unknown")
    shown = repr(shortened(text))
    encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
    ids, offsets = list(encoded["input_ids"]), encoded["offset_mapping"]
    if kind == CAUSAL:  # a text to continue does not end with </s>
        while len(ids) > 1 and ids[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id):
            ids.pop()
    limit = text_limit(model.config, tokenizer)
    if limit is not None and len(ids) > limit:
        raise RecipeError(f"{shown} has {len(ids)} tokens, but the model takes at most {limit}; shorten it")
    same = {getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "cls", "sep", "mask")}
    places = _masks(tokenizer, ids, shown) if kind == MASKED else [-1 if kind == CAUSAL else None]
    if all(token in same for token in ids):
        raise RecipeError(f"{shown} has only special tokens, so nothing can explain an answer")
    targets = [target] if target is None or isinstance(target, str) else list(target)
    if len(targets) not in (1, len(places)):
        masks = f"{len(places)} masks" if kind == MASKED and len(places) > 1 else "one place to explain"
        raise RecipeError(f"{len(targets)} targets for {shown}, which has {masks}; give one, or one for each")
    outputs = [_outputs(model, tokenizer, kind, name) for name in targets]
    kept = tuple(token in same for token in ids)
    pieces, blank = tuple(_pieces(text, offsets[: len(ids)])), _blank(tokenizer, baseline)
    return [
        Question(text, tuple(ids), kept, pieces, place, outputs[index % len(outputs)], blank)
        for index, place in enumerate(places)
    ]


def explain(
    model: Any,
    tokenizer: Any,
    question: Question,
    *,
    steps: int = STEPS,
    max_steps: int = MAX_STEPS,
    tolerance: float = TOLERANCE,
    tokens_at_once: int = TOKENS_AT_ONCE,
    watch: Watch | None = None,
) -> Attribution:
    """Computes the attribution for a question.

    Args:
        model, tokenizer: As in `attribute`.
        question: A question that `questions` returned for them.
        steps: Points of Gauss-Legendre quadrature to begin with. They are doubled while the completeness error is
            above `tolerance`.
        max_steps: Most points.
        tolerance: Relative completeness error that is good enough.
        tokens_at_once: Tokens that fit into memory, over all steps that are computed together; at least one step is
            computed at a time.
        watch: Called after each group of steps with how many are done, and how many there are.

    Raises:
        RecipeError: if captum is missing, or the model's output is not finite.
    """
    check_package("captum", "an explanation", "explain")
    from captum.attr import IntegratedGradients

    done = 0

    with _ready(model) as ready:
        inputs, baseline = _path(ready, question)

        def values(embeddings: torch.Tensor) -> torch.Tensor:
            return _values(ready, question, embeddings)

        with torch.no_grad():
            given = values(inputs)[0]
            index = _likeliest(given, question.outputs)
            value, before = given[index].item(), values(baseline)[0, index].item()
        if not (math.isfinite(value) and math.isfinite(before)):
            raise RecipeError(
                f"the model's output is not finite for {shortened(question.text)!r}: {value} and {before}"
            )

        def watched(embeddings: torch.Tensor) -> torch.Tensor:
            nonlocal done
            result = values(embeddings)[:, index]
            done += len(embeddings)
            if watch is not None:
                watch(done, steps)
            return result

        method = IntegratedGradients(watched)
        rows = max(1, tokens_at_once // len(question.ids))
        while True:
            done = 0
            parts = method.attribute(inputs, baseline, n_steps=steps, internal_batch_size=rows)
            scores = parts[0].sum(-1).cpu().double()
            error = _relative_error(scores.sum().item(), value - before)
            if error <= tolerance or 2 * steps > max_steps:
                break
            steps *= 2
    return _attribution(model, tokenizer, question, index, value, before, scores.tolist(), error, steps)


@contextmanager
def _ready(model: Any) -> Iterator[Any]:
    """The model, or a float32 copy, in evaluation mode; restores it afterwards."""
    if any(weights.dtype in (torch.float16, torch.bfloat16) for weights in model.parameters()):
        model = copy.deepcopy(model).float()
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield model
    finally:
        for module in training:
            module.training = True


def _vectors(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """The embeddings (1, L, d) of ids."""
    with torch.no_grad():
        return model.get_input_embeddings()(torch.tensor([ids], device=model.device))


def _path(model: Any, question: Question) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings (1, L, d) of the text and of its baseline."""
    inputs = _vectors(model, question.ids)
    blank = torch.zeros_like(inputs) if question.blank is None else _vectors(model, [question.blank])
    return inputs, torch.where(torch.tensor(question.kept, device=inputs.device)[:, None], inputs, blank)


def _values(model: Any, question: Question, embeddings: torch.Tensor) -> torch.Tensor:
    """Embeddings (B, L, d) -> outputs (B, outputs) to explain: log-probabilities, or the numbers of a regression."""
    options: dict[str, Any] = {}
    if question.place == -1:
        options["use_cache"] = False
        if model._supports_logits_to_keep():
            options["logits_to_keep"] = 1
    logits = model(inputs_embeds=embeddings, **options).logits
    if question.place is not None:
        return F.log_softmax(logits[:, question.place], dim=-1)
    if _gives_numbers(model.config):
        return logits
    if model.config.problem_type == "multi_label_classification":
        return F.logsigmoid(logits)
    return F.log_softmax(logits, dim=-1)


def _gives_numbers(config: Any) -> bool:
    return config.problem_type == "regression" or (config.problem_type is None and config.num_labels == 1)


def _likeliest(values: torch.Tensor, outputs: tuple[int, ...]) -> int:
    """The index of the largest of `values` (outputs,), or of the largest among some outputs."""
    if not outputs:
        return int(values.argmax())
    return outputs[int(values[list(outputs)].argmax())]


def _relative_error(total: float, difference: float) -> float:
    if difference == 0:
        return 0.0 if total == 0 else math.inf
    return abs(total - difference) / abs(difference)


def _attribution(
    model: Any,
    tokenizer: Any,
    question: Question,
    index: int,
    value: float,
    before: float,
    token_scores: list[float],
    error: float,
    steps: int,
) -> Attribution:
    """The attribution, with the scores of tokens summed within each piece."""
    place = None
    pieces: list[str] = []
    scores: list[float] = []
    start = 0
    for end, tokens in question.pieces:
        if question.place in tokens:
            place = len(pieces)
        pieces.append(question.text[start:end])
        scores.append(sum(token_scores[token] for token in tokens))
        start = end
    is_class = question.place is None
    return Attribution(
        pieces=tuple(pieces),
        scores=tuple(scores),
        place=place,
        target=model.config.id2label[index] if is_class else _written(tokenizer, index),
        probability=None if is_class and _gives_numbers(model.config) else math.exp(value),
        value=value,
        baseline_value=before,
        baseline_token=None if question.blank is None else tokenizer.convert_ids_to_tokens(question.blank),
        error=error,
        steps=steps,
    )


def _pieces(text: str, offsets: Sequence[tuple[int, int]]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The end in the text, and the tokens, of each piece. Pieces end where a token ends, and never within a character.

    A character here is an extended grapheme cluster (Unicode's annex 29).
    """
    ends = {match.end() for match in regex.finditer(r"\X", text)}
    begin, stop = 0, 0
    tokens: list[int] = []
    for token, (start, end) in enumerate(offsets):
        if stop > begin and stop in ends and start >= stop:
            yield stop, tuple(tokens)
            begin, tokens = stop, []
        tokens.append(token)
        stop = max(stop, end)
    yield len(text), tuple(tokens)


def _masks(tokenizer: Any, ids: list[int], shown: str) -> list[int | None]:
    if tokenizer.mask_token_id is None:
        raise RecipeError("the tokenizer has no mask token, so masked words cannot be explained")
    places: list[int | None] = [place for place, token in enumerate(ids) if token == tokenizer.mask_token_id]
    if not places:
        raise RecipeError(f"no mask in {shown}: write {tokenizer.mask_token} in place of a word")
    return places


def _blank(tokenizer: Any, baseline: str | None) -> int | None:
    if baseline is None:
        return tokenizer.pad_token_id if tokenizer.mask_token_id is None else tokenizer.mask_token_id
    vocabulary = tokenizer.get_vocab()
    if baseline not in vocabulary:
        hint = did_you_mean(baseline, vocabulary, f"give one such as {tokenizer.mask_token or tokenizer.pad_token}")
        raise RecipeError(f"baseline {baseline!r} is not a token of the model; {hint}")
    return vocabulary[baseline]


def _outputs(model: Any, tokenizer: Any, kind: str, target: str | None) -> tuple[int, ...]:
    """The outputs that a target can mean: a label's, or the tokens of a word with and without a space before it."""
    if target is None:
        return ()
    if kind == CLASSIFIER:
        labels = {str(label): int(index) for index, label in model.config.id2label.items()}
        if target not in labels:
            hint = did_you_mean(target, labels, f"the model's labels are {', '.join(labels)}")
            raise RecipeError(f"target {target!r} is not a label of the model; {hint}")
        return (labels[target],)
    forms = [target] if target[:1].isspace() else [target, " " + target]
    encoded = [tokenizer.encode(form, add_special_tokens=False) for form in forms]
    found = [ids[0] for ids in encoded if len(ids) == 1]
    named = tokenizer.get_vocab().get(target)  # a token as the tokenizer writes it: "##s"
    found = [token for token in [*found, *([] if named is None else [named])] if token != tokenizer.unk_token_id]
    if not target:
        raise RecipeError("target '' is empty; give a word of one token")
    if not found:
        shortest = min(encoded, key=len)
        if not shortest or tokenizer.unk_token_id in shortest:
            raise RecipeError(f"target {target!r} is not in the model's vocabulary; give a word of one token")
        tokens = ", ".join(repr(_written(tokenizer, token)) for token in shortest)
        raise RecipeError(
            f"target {target!r} is not one token of the model but {len(shortest)}: {tokens}; give a word of one token"
        )
    return tuple(dict.fromkeys(found))


def _written(tokenizer: Any, token: int) -> str:
    """A token as text, or as the tokenizer writes it if it is only part of a character."""
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    return text if text and UNFINISHED not in text else str(tokenizer.convert_ids_to_tokens(token))
