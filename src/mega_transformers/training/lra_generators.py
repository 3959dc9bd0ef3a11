"""Rows for classification that need no files: ListOps by its published rules, and stand-ins for pixels."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..errors import RecipeError
from .tokenizer import PAIR_SPECIAL_TOKENS

Row = dict[str, Any]

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
LISTOPS_VOCABULARY = (*"0123456789", *OPERATORS, "]")
OPERATOR_PROBABILITY = 0.25
# draws without a new row after which the bounds of `listops` are taken to leave none
MAX_MISSES = 20_000


def listops(
    count: int,
    seed: int,
    min_length: int = 500,
    max_length: int = 2000,
    max_depth: int = 10,
    max_args: int = 10,
) -> Iterator[Row]:
    """Expressions of ListOps and their values, by the arena's rules (after Nangia and Bowman, 2018).

    The outermost node is an operator; others above the lowest level are one with a probability of 1/4, else a digit.
    An operator has 2 to `max_args` arguments. The median of an even number of values is rounded down.

    Args:
        count, seed: Rows, of which no two are equal, and what decides about them.
        min_length, max_length: Tokens, without parentheses; both are excluded, as in the arena.
        max_depth: Levels of nodes, of which the lowest has digits only.
        max_args: Arguments of an operator, at most.

    Raises:
        RecipeError: if so many different expressions cannot be found.
    """
    if max_depth < 2 or max_args < 2:
        raise RecipeError(f"listops: max_depth={max_depth} and max_args={max_args} must be at least 2")
    rng, misses = random.Random(seed), 0
    seen: set[bytes] = set()
    while len(seen) < count:
        tokens, value = _expression(rng, max_length, max_depth, max_args)
        text = " ".join(tokens)
        # digests, because rows have kilobytes
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        if min_length < len(tokens) < max_length and digest not in seen:
            seen.add(digest)
            misses = 0
            yield {"text": text, "label": value}
        elif (misses := misses + 1) > MAX_MISSES:
            raise RecipeError(
                f"listops: {len(seen)} of {count} rows found between min_length={min_length} and "
                f"max_length={max_length} (both excluded); widen them, or ask for fewer rows"
            )


def _expression(rng: random.Random, max_length: int, max_depth: int, max_args: int) -> tuple[list[str], int]:
    """Tokens and value; no tokens if there would be `max_length` or more."""
    draw = rng.random
    tokens: list[str] = []
    # operator, number of arguments, and values so far, of every open bracket
    stack: list[tuple[str, int, list[int]]] = []
    least = 1  # tokens that there will be if no more operators come
    while True:
        if not stack or (len(stack) + 1 < max_depth and draw() <= OPERATOR_PROBABILITY):
            arguments = 2 + int(draw() * (max_args - 1))
            stack.append((OPERATORS[int(draw() * len(OPERATORS))], arguments, []))
            tokens.append(stack[-1][0])
            least += 1 + arguments
            if least >= max_length:
                return [], 0
            continue
        value = int(draw() * 10)
        tokens.append(LISTOPS_VOCABULARY[value])
        stack[-1][2].append(value)
        while len(stack[-1][2]) == stack[-1][1]:
            operator, _, values = stack.pop()
            value = _value(operator, sorted(values))
            tokens.append("]")
            if not stack:
                return tokens, value
            stack[-1][2].append(value)


def _value(operator: str, ordered: list[int]) -> int:
    if operator == "[SM":
        return sum(ordered) % 10
    if operator == "[MED":
        return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) // 2
    return ordered[0 if operator == "[MIN" else -1]


def listops_tokenizer(max_length: int = 2002) -> Any:
    """A fast tokenizer of `LISTOPS_VOCABULARY`, behind `<s>`, `<pad>`, `</s>` and `<unk>`; a text ends with `</s>`.

    Args:
        max_length: Tokens that the model reads at most.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = (*PAIR_SPECIAL_TOKENS, *LISTOPS_VOCABULARY)
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def pathfinder(count: int, seed: int, size: int = 32) -> Iterator[Row]:
    """A stand-in for Pathfinder, and not its data: are two dots the ends of one dashed line (1), or of two (0)?

    Every drawing has two long lines and two short ones, and would do for both classes but for its second dot.

    Args:
        count, seed: Drawings, and what decides about them.
        size: Pixels of a side, at least 32.
    """
    if size < 32:
        raise RecipeError(f"pathfinder: size={size} must be at least 32")
    rng = random.Random(seed)
    for _ in range(count):
        label, image = rng.randrange(2), None
        while image is None:
            image = _drawing(rng, size, label)
        yield {"values": image.reshape(-1), "label": label}


def _drawing(rng: random.Random, size: int, label: int) -> np.ndarray | None:
    """A drawing; None if its lines leave no room to the next, or would do for one class only."""
    image, taken = np.zeros((size, size), np.uint8), np.zeros((size, size), bool)
    lines = []
    for dashes in (size // 4, size // 4, 2, 2):
        line = next((line for _ in range(100) if (line := _line(rng, taken, dashes))), None)
        if line is None:
            return None
        for at, (y, x) in enumerate(line):
            image[y, x] = 0 if at % 3 == 2 else 160
            # so far apart that no dot comes as near to another line as two dashes of one are
            taken[max(y - 4, 0) : y + 5, max(x - 4, 0) : x + 5] = True
        lines.append(line)
    (start, end), other_ends = (lines[0][0], lines[0][-1]), (lines[1][0], lines[1][-1])
    # as far away as the right one, so that the distance of the dots tells nothing
    wrong = [other for other in other_ends if abs(math.dist(start, other) - math.dist(start, end)) < 1]
    if not wrong:
        return None
    for y, x in (start, end if label else wrong[0]):
        image[y - 1 : y + 2, x - 1 : x + 2] = 255
    return image


def _line(rng: random.Random, taken: np.ndarray, dashes: int) -> list[tuple[int, int]] | None:
    """Pixels of a smooth line, three for a dash and its gap; None if it leaves the drawing or meets another line."""
    size = len(taken)
    y, x, heading = rng.uniform(2, size - 3), rng.uniform(2, size - 3), rng.uniform(0, 2 * math.pi)
    line = []
    for step in range(3 * dashes):
        if step % 3 == 0:
            heading += rng.uniform(-0.5, 0.5)
        y, x = y + math.sin(heading), x + math.cos(heading)
        pixel = round(y), round(x)
        if min(pixel) < 2 or max(pixel) >= size - 2 or taken[pixel]:
            return None
        line.append(pixel)
    return line


def images(count: int, seed: int, size: int = 32) -> Iterator[Row]:
    """A stand-in for CIFAR-10, and not its data: noisy stripes, whose direction is one of ten classes.

    Args:
        count, seed: Images, and what decides about them.
        size: Pixels of a side.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    for _ in range(count):
        label = int(rng.integers(10))
        angle, stripes, phase = math.pi * label / 10, rng.uniform(2, 4), rng.uniform(0, 2 * math.pi)
        waves = np.sin(2 * math.pi * stripes * (x * math.cos(angle) + y * math.sin(angle)) + phase)
        noisy = 128 + 80 * waves + rng.normal(0, 20, waves.shape)
        yield {"values": noisy.clip(0, 255).astype(np.uint8).reshape(-1), "label": label}


GENERATORS: dict[str, Callable[..., Iterator[Row]]] = {"listops": listops, "pathfinder": pathfinder, "images": images}
