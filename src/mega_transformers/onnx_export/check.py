"""Compares graphs with the model, in numbers and speed: in ONNX Runtime, at six lengths, with padding."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from ..models.mega.modeling_mega import MegaForCausalLM, MegaModel
from ..models.mega.modeling_mega_classification import MegaForMultipleChoice
from ..models.mega.modeling_mega_pairs import MegaForSequencePairClassification
from ..models.mega.modeling_mega_seq2seq import MegaForConditionalGeneration
from .graphs import (
    CHOICES,
    CROSS,
    DECODER,
    ENCODER,
    MODEL,
    ExportError,
    Source,
    Whole,
    inputs_of,
    longest_row,
)
from .running import Decoder, Session

TOLERANCE = 1e-4
"""The greatest deviation at a real token that counts as rounding, relative to 1 + the greatest number."""
ROWS = 3
STEPS = 4
"""Tokens to decode after those of each length."""
GENERATED = 24
"""Tokens to generate freely, and to compare with `generate`."""
TIMED = 5
"""Timed runs of one row; the median is reported."""
SPAN = 1024
"""Tokens of the longest row, unless chunks make it longer."""
LONGEST = 2048
LONGEST_TARGET = 128
"""Tokens of a target to decode one by one."""

Stage = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """The findings about a graph at one length.

    Attributes:
        graph: `"model"`, `"decoder"` or `"encoder"`.
        length: Tokens in a row; for a decoder, tokens before the new one.
        deviation: The greatest difference of an output at a real token, in a batch of 1 and of 3 with padding,
            divided by 1 + the greatest number of that output.
        ms: Median milliseconds in ONNX Runtime, for one row and one thread.
        torch_ms: The same in PyTorch.
    """

    graph: str
    length: int
    deviation: float
    ms: float
    torch_ms: float


def check(model: PreTrainedModel, folder: Path, stage: Stage = lambda _: None, suffix: str = "") -> list[Row]:
    """Compares the graphs of a folder with the model.

    Args:
        model: The model, in float32.
        folder: The folder of `model.onnx` or the other graphs.
        stage: Called with the name of each stage.
        suffix: Suffix of the graphs' names: ".int8". Such graphs may generate other tokens.

    Returns:
        A row for each graph and length. Deviations are not refused here; see `refuse_deviations`.

    Raises:
        ExportError: if tokens that the graphs generate differ from those of `generate`.
    """
    sessions = {
        name: Session(folder / f"{name}{suffix}.onnx")
        for name in (ENCODER, MODEL, DECODER)
        if (folder / f"{name}{suffix}.onnx").is_file()
    }
    with torch.no_grad(), _one_thread():
        if ENCODER in sessions:
            return _check_pair(cast(MegaForConditionalGeneration, model), sessions, stage, not suffix)
        rows = []
        for length in lengths_of(model):
            stage(f"Checking {MODEL}{suffix}.onnx with {length} tokens")
            rows.append(_check_whole(model, sessions[MODEL], length))
        if DECODER in sessions:
            rows += _check_decoder(cast(MegaForCausalLM, model), sessions, stage, not suffix)
    return rows


def refuse_deviations(rows: list[Row]) -> None:
    """Raises ExportError for the first row whose deviation is more than rounding, or not a number."""
    for row in rows:
        if not row.deviation <= TOLERANCE:
            raise ExportError(
                f"{row.graph}.onnx deviates from the model by {row.deviation:.1e} at {row.length} tokens, more than "
                f"{TOLERANCE:.0e}; nothing was written"
            )


def lengths_of(model: PreTrainedModel) -> list[int]:
    """Six lengths, fewer for a model with few positions: 1, below, at and beyond a chunk's end, some chunks, many."""
    config = cast(Any, model).config
    sides = [getattr(config, "encoder", config), getattr(config, "decoder", config)]
    # without chunks, the ends are those of the blocks in which a graph computes averages
    edge = max((side.chunk_size for side in sides if side.use_chunking), default=64)
    longest = min(max(SPAN, 4 * edge), LONGEST, longest_row(model) or LONGEST)
    if longest <= edge:
        edge = longest // 2
    several = min(2 * edge + edge // 3, longest - edge // 3)
    return sorted({n for n in (1, edge // 2, edge, edge + 1, several, longest) if 1 <= n <= longest})


def padded(length: int, rows: int) -> Tensor:
    """(B, L) int64, 0 at padding: on the right of the first row, on the left of the second, none in others."""
    mask = torch.ones(rows, length, dtype=torch.int64)
    if rows > 1:
        mask[0, length - length // 3 :] = 0
        mask[1, : length // 4] = 0
    return mask


def _check_whole(model: PreTrainedModel, session: Session, length: int) -> Row:
    whole, deviation, times = Whole(model), 0.0, (0.0, 0.0)
    for rows in (1, ROWS):
        inputs = example_inputs(model, padded(length, rows))
        actual, expected = session(inputs), whole(inputs)
        for name, value in expected.items():
            deviation = max(deviation, _deviation(actual[name], value, inputs["attention_mask"]))
        if rows == 1:
            times = _median_ms(session, inputs), _median_ms(whole, inputs)
    return Row(MODEL, length, deviation, *times)


def example_inputs(model: PreTrainedModel, mask: Tensor) -> dict[str, Tensor]:
    trunk = model if isinstance(model, MegaModel) else cast(Any, model).mega
    inputs = inputs_of(trunk.config, mask, seed=mask.numel())
    if isinstance(model, MegaForSequencePairClassification):
        more = inputs_of(trunk.config, padded(max(1, mask.shape[1] - 1), len(mask)).flip(0), seed=1)
        inputs |= {f"pair_{name}": x for name, x in more.items()}
    if isinstance(model, MegaForMultipleChoice):
        others = [inputs_of(trunk.config, mask, seed=seed) for seed in range(1, CHOICES)]
        inputs = {name: torch.stack([x, *(other[name] for other in others)], dim=1) for name, x in inputs.items()}
    return inputs


def _check_decoder(model: MegaForCausalLM, sessions: dict[str, Session], stage: Stage, written: bool) -> list[Row]:
    """Decodes tokens one by one, after prompts of every length."""
    config, limit, found = model.mega.config, longest_row(model), []
    for length in lengths_of(model):
        length = length if limit is None else min(length, limit - STEPS)
        stage(f"Checking {DECODER}.onnx after {length} tokens")
        deviation, times = 0.0, (0.0, 0.0)
        for rows in (1, ROWS):
            mask = torch.cat([padded(length, rows), torch.ones(rows, STEPS, dtype=torch.int64)], dim=1)
            inputs = inputs_of(config, mask, seed=length)
            ids, prompt = inputs["input_ids"], {name: x[:, :length] for name, x in inputs.items()}
            expected = model(**inputs, use_cache=False).logits
            cache = model(**prompt, use_cache=True).cache

            def step(i: int, ids=ids, mask=mask, cache=cache, length=length) -> None:
                seen = mask[:, : length + i + 1]
                model(ids[:, length + i : length + i + 1], attention_mask=seen, cache=cache, use_cache=True)

            decoder = Decoder(sessions[DECODER], sessions[MODEL](prompt), config)
            far, ms = _decoded(decoder, ids[:, length:], expected[:, length:], step)
            deviation, times = max(deviation, far), times if rows > 1 else ms
        found.append(Row(DECODER, length, deviation, *times))
    if not written:
        return found
    stage(f"Writing with {DECODER}.onnx")
    length = config.chunk_size - 2 if config.use_chunking else 8
    length = max(1, length if limit is None else min(length, limit - GENERATED))
    prompt = inputs_of(config, torch.ones(ROWS, length, dtype=torch.int64), seed=0)
    past = sessions[MODEL](prompt)
    first = past["logits"][:, -1:].argmax(dim=-1)
    _compare_written(model, prompt, first, Decoder(sessions[DECODER], past, config), limit and limit - length)
    return found


def _check_pair(
    model: MegaForConditionalGeneration, sessions: dict[str, Session], stage: Stage, written: bool
) -> list[Row]:
    """Sources of every length, and targets of the same length, one token at a time."""
    encoder, decoder = model.model.encoder.config, model.model.decoder.config
    module, start = Source(model).eval(), start_token(model)
    sources, targets = [], []
    for length in lengths_of(model):
        stage(f"Checking {ENCODER}.onnx and {DECODER}.onnx with {length} tokens")
        tokens = min(length, LONGEST_TARGET)
        deviation, target_deviation, times, target_times = 0.0, 0.0, (0.0, 0.0), (0.0, 0.0)
        for rows in (1, ROWS):
            mask = padded(length, rows)
            inputs = inputs_of(encoder, mask, seed=length)
            ids = inputs_of(decoder, torch.ones(rows, tokens, dtype=torch.int64), seed=1)["input_ids"]
            ids[:, 0] = start
            outputs = model(**inputs, decoder_input_ids=ids, use_cache=True)
            past = sessions[ENCODER](inputs) | {f"{CROSS}mask": mask}
            for i, layer in enumerate(outputs.cache.cross_attention_cache.layers):
                for name, x in (("keys", layer.keys), ("values", layer.values)):
                    deviation = max(deviation, _deviation(past[f"{CROSS}{name}.{i}"], x.squeeze(1), mask))
            caches = [None]

            def step(i: int, ids=ids, mask=mask, source=outputs.encoder_last_hidden_state, caches=caches) -> None:
                after = model(
                    encoder_outputs=(source,),
                    attention_mask=mask,
                    decoder_input_ids=ids[:, i : i + 1],
                    cache=caches[0],
                    use_cache=True,
                )
                caches[0] = after.cache

            far, ms = _decoded(Decoder(sessions[DECODER], past, decoder), ids, outputs.logits, step)
            target_deviation = max(target_deviation, far)
            if rows == 1:
                times = _median_ms(sessions[ENCODER], inputs), _median_ms(module, inputs)
                target_times = ms
        sources.append(Row(ENCODER, length, deviation, *times))
        targets.append(Row(DECODER, tokens - 1, target_deviation, *target_times))
    if not written:
        return sources + targets
    stage(f"Writing with {DECODER}.onnx")
    limit = longest_row(model)
    mask = padded(12 if limit is None else min(12, limit), ROWS)
    inputs = inputs_of(encoder, mask, seed=0)
    writer = Decoder(sessions[DECODER], sessions[ENCODER](inputs) | {f"{CROSS}mask": mask}, decoder)
    first = writer.step(torch.full((ROWS, 1), start)).argmax(dim=-1)
    _compare_written(model, inputs, first, writer, limit and limit - 1)
    return sources + targets


def _decoded(
    decoder: Decoder, ids: Tensor, expected: Tensor, torch_step: Callable[[int], None]
) -> tuple[float, tuple[float, float]]:
    """Feeds ids (B, L) one by one: the deviation from logits (B, L, V), and median milliseconds of the last steps."""
    deviation, mine, theirs = 0.0, [], []
    for i in range(ids.shape[1]):
        begun = time.perf_counter()
        logits = decoder.step(ids[:, i : i + 1])
        between = time.perf_counter()
        torch_step(i)
        mine.append(between - begun)
        theirs.append(time.perf_counter() - between)
        deviation = max(deviation, _deviation(logits, expected[:, i : i + 1], None))
    return deviation, (1e3 * statistics.median(mine[-TIMED:]), 1e3 * statistics.median(theirs[-TIMED:]))


def _compare_written(
    model: Any, inputs: dict[str, Tensor], first: Tensor, decoder: Decoder, limit: int | None
) -> None:
    """Raises ExportError unless greedy decoding from `first` (B, 1) on gives the tokens of `generate`."""
    count = GENERATED if limit is None else min(GENERATED, limit)
    settings = model.generation_config
    # only the most likely tokens, and no end
    model.generation_config = transformers.GenerationConfig(
        decoder_start_token_id=settings.decoder_start_token_id, pad_token_id=settings.pad_token_id or 0
    )
    try:
        expected = model.generate(**inputs, max_new_tokens=count, do_sample=False)[:, -count:]
    finally:
        model.generation_config = settings
    ids = first
    for i in range(count):
        if not torch.equal(ids, expected[:, i : i + 1]):
            raise ExportError(
                f"{DECODER}.onnx generates other tokens than the model, from token {i + 1} of {count}; nothing was "
                "written"
            )
        if i + 1 < count:
            ids = decoder.step(ids).argmax(dim=-1)


def start_token(model: MegaForConditionalGeneration) -> int:
    """The first token of a target."""
    start = model.generation_config.decoder_start_token_id
    return cast(int, model.config.decoder_start_token_id if start is None else start)


def _deviation(actual: Tensor, expected: Tensor, mask: Tensor | None) -> float:
    """The greatest difference, relative to 1 + the greatest number expected; infinite for NaN.

    Only real tokens count for outputs per token, and every number of pooled outputs.
    """
    if actual.shape != expected.shape:
        return torch.inf
    difference, size = (actual.to(torch.float32) - expected.to(torch.float32)).abs(), expected.to(torch.float32).abs()
    if mask is not None and difference.shape[: mask.dim()] == mask.shape:
        difference, size = difference[mask.to(torch.bool)], size[mask.to(torch.bool)]
    if not difference.numel():
        return 0.0
    return difference.nan_to_num(nan=torch.inf).max().item() / (1 + size.nan_to_num().max().item())


def _median_ms(run: Callable[[dict[str, Tensor]], object], inputs: dict[str, Tensor]) -> float:
    """Median milliseconds of some runs."""
    seconds = []
    for _ in range(TIMED):
        begun = time.perf_counter()
        run(inputs)
        seconds.append(time.perf_counter() - begun)
    return 1e3 * statistics.median(seconds)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Runs PyTorch on one thread, like the sessions."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
