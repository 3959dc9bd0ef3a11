"""Generates rows for classification without files: ListOps by its published rules, and stand-ins for pixel tasks."""

from __future__ import annotations

import hashlib
import math
import random
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from ..errors import RecipeError
from .tokenizer import PAIR_SPECIAL_TOKENS, eos_tokenizer

Row = dict[str, Any]

_FUNCTIONS: dict[str, Callable[[list[int]], int]] = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda values: int(statistics.median(values)),
    "[SM": lambda values: sum(values) % 10,
}
OPERATORS = tuple(_FUNCTIONS)
LISTOPS_VOCABULARY = (*"0123456789", *OPERATORS, "]")
OPERATOR_PROBABILITY = 0.25
# after this many draws without a new row, the bounds of `listops` count as exhausted
MAX_MISSES = 20_000


def listops(
    count: int, seed: int, min_length: int = 500, max_length: int = 2000, max_depth: int = 10, max_args: int = 10
) -> Iterator[Row]:
    """Expressions of ListOps and their values, by the arena's rules (after Nangia and Bowman, 2018).

    The outermost node is an operator; others above the lowest level are one with a probability of 1/4, else a digit.
    The median of an even number of values is rounded down.

    Args:
        count, seed: The number of rows, all different, and the seed.
        min_length, max_length: Tokens, without parentheses; both are excluded, as in the arena.
        max_depth: Levels of nodes; the lowest has only digits.
        max_args: Most arguments of an operator; the least is two.

    Raises:
        RecipeError: if there are not enough different expressions.
    """
    if max_depth < 2 or max_args < 2:
        raise RecipeError(f"listops: max_depth={max_depth} and max_args={max_args} must be at least 2")
    rng, misses = random.Random(seed), 0
    seen: set[bytes] = set()  # digests, since rows take kilobytes
    while len(seen) < count:
        tokens, value = _expression(rng, max_length, max_depth, max_args)
        text = " ".join(tokens)
        digest = hashlib.sha256(text.encode()).digest()
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
    draw, tokens = rng.random, []
    least = 1  # the number of tokens if no more operators come

    def node(depth: int) -> int:
        nonlocal least
        if depth > 1 and (depth >= max_depth or draw() > OPERATOR_PROBABILITY):
            tokens.append(str(int(draw() * 10)))
            return int(tokens[-1])
        arguments, operator = 2 + int(draw() * (max_args - 1)), OPERATORS[int(draw() * len(OPERATORS))]
        least += 1 + arguments
        if least >= max_length:
            raise OverflowError
        tokens.append(operator)
        values = [node(depth + 1) for _ in range(arguments)]
        tokens.append("]")
        return _FUNCTIONS[operator](values)

    try:
        return tokens, node(1)
    except OverflowError:
        return [], 0


def listops_tokenizer(max_length: int = 2002) -> Any:
    """A tokenizer of `<s>`, `<pad>`, `</s>`, `<unk>` and `LISTOPS_VOCABULARY`; a text ends with `</s>`."""
    words = {word: index for index, word in enumerate((*PAIR_SPECIAL_TOKENS, *LISTOPS_VOCABULARY))}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return eos_tokenizer(backend, max_length, model_input_names=["input_ids", "attention_mask"])


def pathfinder(count: int, seed: int, size: int = 32) -> Iterator[Row]:
    """A stand-in for Pathfinder, not its data: are two dots the ends of one dashed line (1) or of two lines (0)?

    Both possible places of the second dot are equally far from the first dot. A side has `size` pixels, at least 32.
    """
    if size < 32:
        raise RecipeError(f"pathfinder: size={size} must be at least 32")
    rng = np.random.default_rng(seed)
    columns = np.arange(3, size - 3)
    along = np.linspace(0, 1, len(columns))
    for _ in range(count):
        label, image = int(rng.integers(2)), np.zeros((size, size), np.uint8)
        rise, gap, bend = rng.uniform(4.5, 6), rng.uniform(9, 11), rng.uniform(-2, 2)
        first = bend * np.sin(2 * math.pi * along) - rise * along
        second = first + gap + (2 * rise - gap) * along
        place = rng.uniform(3 - first.min(), size - 4 - second.max())
        first, second = (np.rint(line + place).astype(int) for line in (first, second))
        for line in (first, second):
            image[line, columns] = np.where(columns % 3 == 2, 0, 160)
        for y, x in ((first[0], columns[0]), ((first if label else second)[-1], columns[-1])):
            image[y - 1 : y + 2, x - 1 : x + 2] = 255
        # otherwise the side of the second dot would reveal the label
        image = np.rot90(image[:: rng.choice([-1, 1])], int(rng.integers(4)))
        yield {"values": image.reshape(-1), "label": label}


def images(count: int, seed: int, size: int = 32) -> Iterator[Row]:
    """A stand-in for CIFAR-10, not its data: noisy stripes in one of ten directions."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    for _ in range(count):
        label = int(rng.integers(10))
        angle, stripes, phase = math.pi * label / 10, rng.uniform(2, 4), rng.uniform(0, 2 * math.pi)
        waves = np.sin(2 * math.pi * stripes * (x * math.cos(angle) + y * math.sin(angle)) + phase)
        noisy = 128 + 80 * waves + rng.normal(0, 20, waves.shape)
        yield {"values": noisy.clip(0, 255).astype(np.uint8).reshape(-1), "label": label}


GENERATORS: dict[str, Callable[..., Iterator[Row]]] = {"listops": listops, "pathfinder": pathfinder, "images": images}
