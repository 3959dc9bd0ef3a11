"""Checks that a converted model computes the numbers of its source on the same random inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import MegaBlock
from .errors import ConversionError
from .plan import CHOICES, Inputs, Plan, Results
from .reading import Progress
from .reference import Weights

TOLERANCE = 1e-4
"""Greatest allowed deviation, relative to 1 + the source's greatest number."""

SHORT = (1, 3, 6, 11)
LONG = 40
MAX_LENGTH = 4200
MAX_WORK = 4e11
"""Most multiplications for the long input, so that the check takes at most a minute."""


@dataclass(frozen=True)
class Case:
    """Random inputs.

    Args:
        description: A description for people.
        inputs: The model's keyword arguments.
        headless: Whether they are for the model without its head.
    """

    description: str
    inputs: dict[str, Tensor]
    headless: bool = False


@dataclass(frozen=True)
class Deviation:
    """How far an output of the converted model is from that of its source.

    Args:
        case: The random inputs, described for people.
        output: Name of the output.
        relative: Greatest absolute deviation / (1 + greatest absolute number of the source's output).
    """

    case: str
    output: str
    relative: float


def make_cases(plan: Plan) -> list[Case]:
    """Short rows with padding for everything, and one long row, which exceeds chunks and truncation if time allows."""
    inputs, random = plan.inputs, torch.Generator().manual_seed(0)
    limit, longest = inputs.limit or MAX_LENGTH, long_length(plan)
    short = [min(length, limit) for length in SHORT]
    if inputs.kind == "values":
        described = [f"{len(short)} rows of {short[-1]}", f"1 row of {longest}"]
    else:
        described = [f"{len(short)} rows of {short[0]} to {short[-1]}, padded", f"1 row of {longest}, padded"]
    return [
        Case(described[0], random_inputs(inputs, short, random)),
        Case(described[1], random_inputs(inputs, [longest], random, True), True),
    ]


def long_length(plan: Plan) -> int:
    """The number of tokens of the long row."""
    size = sum(tensor.numel() for tensor in plan.tensors.values())
    longest = min(plan.inputs.limit or MAX_LENGTH, MAX_LENGTH, max(LONG, int(MAX_WORK / size)))
    reached = [border + 3 for border in plan.inputs.borders if border + 3 <= longest]
    return max(reached, default=min(LONG, longest))


def borders_not_reached(plan: Plan) -> list[int]:
    """Chunk sizes and lags that no random input exceeds."""
    longest = long_length(plan)
    limit = plan.inputs.limit
    return [border for border in plan.inputs.borders if border >= longest and (limit is None or border < limit)]


def random_inputs(
    inputs: Inputs, lengths: Sequence[int], random: torch.Generator, headless: bool = False
) -> dict[str, Tensor]:
    """Keyword arguments for rows of `lengths`, padded on the right to the longest; headless ones by two more."""
    width = max(lengths)
    if inputs.limit is None or width + 2 <= inputs.limit:
        width += 2 if headless else 0
    if inputs.kind == "choices" and not headless:
        flat = random_inputs(inputs, [length for length in lengths for _ in range(CHOICES)], random, True)
        return {name: tensor.unflatten(0, (-1, CHOICES)) for name, tensor in flat.items()}
    if inputs.kind == "values":
        # the authors' code does not pad them
        return {"input_values": torch.randn(len(lengths), width, generator=random)}
    mask = _mask(lengths, width)
    ids = _ids(mask, inputs.vocab_size, inputs.pad, random)
    made = {"input_ids": ids, "attention_mask": mask}
    if inputs.types:
        made["token_type_ids"] = torch.randint(inputs.types, mask.shape, generator=random)
    if inputs.kind == "text to text":
        # the other way round, so that a long source meets a short target
        target = _mask(list(reversed(lengths)), max(lengths))
        made["decoder_attention_mask"] = target
        made["decoder_input_ids"] = _ids(target, inputs.target_vocab_size, inputs.pad, random)
    elif inputs.kind == "pairs" and not headless:
        second = _mask(list(reversed(lengths)), width)
        made["pair_attention_mask"] = second
        made["pair_input_ids"] = _ids(second, inputs.vocab_size, inputs.pad, random)
    elif inputs.kind == "tokens and source":
        source = _mask(list(reversed(lengths)), max(lengths))
        made["encoder_attention_mask"] = source
        made["encoder_hidden_states"] = torch.randn(*source.shape, inputs.source_width, generator=random)
    return made


def _mask(lengths: Sequence[int], width: int) -> Tensor:
    return (torch.arange(width) < torch.tensor(lengths).unsqueeze(1)).long()


def _ids(mask: Tensor, vocab_size: int, pad: int | None, random: torch.Generator) -> Tensor:
    """Random ids; padding where `mask` is 0."""
    if pad is None or not 0 <= pad < vocab_size or vocab_size == 1:
        return torch.randint(vocab_size, mask.shape, generator=random)
    ids = torch.randint(vocab_size - 1, mask.shape, generator=random)
    return (ids + (ids >= pad)).masked_fill(mask == 0, pad)


def expected_results(plan: Plan, cases: list[Case], rounded: torch.dtype | None, progress: Progress) -> list[Results]:
    """The source's outputs in float64, computed from its weights as they will be stored.

    Raises:
        ConversionError: if the source cannot be evaluated.
    """
    stage, total = "Evaluating the source in float64", len(cases) * len(plan.tensors)
    results: list[Results] = []
    used: set[str] = set()

    def reading(name: str) -> None:
        used.add(name)
        progress(stage, min(len(results) * len(plan.tensors) + len(used), total - 1), total)

    weights = Weights(plan.tensors, rounded=rounded, reading=reading)
    for case in cases:
        used.clear()
        evaluate = plan.evaluate_trunk if case.headless else plan.evaluate
        try:
            with torch.no_grad():
                results.append(evaluate(weights, case.inputs))
        except (KeyError, RuntimeError, IndexError) as error:
            reason = str(error.args[0] if error.args else error).splitlines()[0]
            raise ConversionError(f"the source cannot be evaluated: {reason}") from error
    progress(stage, total, total)
    return results


def compute_in_float32(model: nn.Module) -> None:
    """Makes a half-precision model compute in float32, by casting one block at a time."""
    blocks = _blocks(model)
    within = {id(tensor) for block in blocks for tensor in _floats(block)}
    for tensor in _floats(model):
        if id(tensor) not in within:
            tensor.data = tensor.data.float()
    stored: list[Tensor] = []

    def widen(block: nn.Module, _: Any) -> None:
        stored[:] = [tensor.data for tensor in _floats(block)]
        for tensor in _floats(block):
            tensor.data = tensor.data.float()

    def restore(block: nn.Module, *_: Any) -> None:
        for tensor, data in zip(_floats(block), stored):
            tensor.data = data

    for block in blocks:
        block.register_forward_pre_hook(widen)
        block.register_forward_hook(restore)


def _blocks(model: nn.Module) -> list[nn.Module]:
    return [part for part in model.modules() if isinstance(part, MegaBlock)]


def _floats(module: nn.Module) -> list[Tensor]:
    """Floating-point parameters and buffers."""
    return [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()]


def compare(model: Any, cases: list[Case], expected: list[Results], progress: Progress) -> list[Deviation]:
    """The deviations of the model's outputs from the expected ones."""
    stage, blocks = "Evaluating the converted model", _blocks(model)
    deviations: list[Deviation] = []
    done, total = 0, len(cases) * len(blocks)

    def block_done(*_: Any) -> None:
        nonlocal done
        done += 1
        # pairs pass every block twice
        progress(stage, min(done, total - 1), total)

    for block in blocks:
        block.register_forward_hook(block_done)
    arguments = {"use_cache": False} if model.can_generate() else {}
    for case, results in zip(cases, expected):
        with torch.no_grad():
            outputs = (model.base_model if case.headless else model)(**case.inputs, **arguments)
        for name, (reference, mask) in results.items():
            deviations.append(Deviation(case.description, name, deviation(outputs[name], reference, mask)))
    progress(stage, total, total)
    return deviations


def deviation(actual: Tensor, reference: Tensor, mask: Tensor | None) -> float:
    """Greatest absolute deviation / (1 + the greatest absolute number of `reference`); inf for another shape."""
    if actual.shape != reference.shape:
        return float("inf")
    if mask is not None:
        actual, reference = actual[mask], reference[mask]
    relative = float((actual.double() - reference).abs().max() / (1 + reference.abs().max()))
    return relative if relative == relative else float("inf")
