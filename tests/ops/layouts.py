"""Layouts of every kind, each beside what it means: a matrix of who sees whom, written by loops over the rule."""

import itertools
from typing import NamedTuple

import torch

from mega_transformers.ops.layout import (
    AttentionLayout,
    cached_layout,
    cross_attention_layout,
    self_attention_layout,
)

BATCH = 2


class LayoutCase(NamedTuple):
    """A layout, who sees whom (B, L, S), distances of key and query (B, L, S), and which queries matter (B, L)."""

    name: str
    layout: AttentionLayout
    seen: torch.Tensor
    distances: torch.Tensor
    real_queries: torch.Tensor


def make_mask(padding, length):
    mask = torch.ones(BATCH, length, dtype=torch.long)
    if padding == "right":
        mask[0, (length + 1) // 2 :] = 0
    elif padding == "left":
        mask[0, : length // 2] = 0
    elif padding == "row":
        mask[1] = 0
    elif padding == "gap":
        mask[0, :1] = 0
        mask[0, length // 2 : length // 2 + 2] = 0
    return None if padding == "none" else mask


def who_sees_whom(mask, length, chunk, causal, starts):
    """The rule, written as it is said."""
    seen = torch.zeros(BATCH, length, length, dtype=torch.bool)
    for row in range(BATCH):
        real = [True] * length if mask is None else mask[row].bool().tolist()
        first_real = real.index(True) if any(real) else 0
        document, position, documents, positions = 0, 0, [], []
        for t in range(length):
            if starts is not None and starts[row, t]:
                document, position = document + 1, 0
            if t == first_real:
                position = 0
            documents.append(document)
            positions.append(position if t >= first_real else position - 10**6)
            position += 1
        for i, j in itertools.product(range(length), repeat=2):
            same_chunk = chunk is None or positions[i] // chunk == positions[j] // chunk
            seen[row, i, j] = real[j] and documents[i] == documents[j] and same_chunk and (not causal or j <= i)
    return seen


def distances(length, keys, offset):
    """(B, L, S), for an offset (B,)."""
    return torch.arange(keys) - torch.arange(length)[:, None] - offset.view(-1, 1, 1)


def self_cases():
    """Tokens among themselves: padding, packing, chunks, causality."""
    for length, chunk, causal in itertools.product((1, 4, 11), (None, 4, 5, 16), (False, True)):
        for padding, packed in itertools.product(("none", "right", "left", "row", "gap"), (False, True)):
            mask, starts = make_mask(padding, length), None
            if packed:
                starts = torch.zeros(BATCH, length, dtype=torch.bool)
                starts[:, ::3] = True
            layout = self_attention_layout(mask, length, chunk_size=chunk, causal=causal, reset=starts)
            seen = who_sees_whom(mask, length, chunk, causal, starts)
            real = torch.ones(BATCH, length, dtype=torch.bool) if mask is None else mask.bool()
            name = f"self {length} chunk {chunk} causal {causal} {padding} packed {packed}"
            yield LayoutCase(name, layout, seen, distances(length, length, torch.zeros(BATCH, dtype=torch.long)), real)


def cached_cases():
    """New tokens behind cached ones, of which all or only those of the current chunk are kept."""
    for total, length, chunk in itertools.product((5, 11), (1, 4), (None, 4, 5)):
        for padding, all_kept in itertools.product(("none", "left", "gap"), (True, False)):
            mask, seen_before = make_mask(padding, total), total - length
            first = torch.zeros(BATCH, dtype=torch.long) if mask is None else mask.int().argmax(dim=1)
            aligned = chunk is None or (not all_kept and padding == "none")
            kept = seen_before
            if chunk is not None and not all_kept:
                kept = seen_before % chunk if aligned else min(seen_before, chunk - 1)
            window = seen_before - kept
            real = None if mask is None else mask[:, window:].bool()
            layout = cached_layout(real, length, kept, seen_before - first, chunk_size=chunk, aligned=aligned)
            seen = who_sees_whom(mask, total, chunk, True, None)[:, seen_before:, window:]
            queries = torch.ones(BATCH, length, dtype=torch.bool) if mask is None else mask[:, seen_before:].bool()
            name = f"cached {total} new {length} chunk {chunk} {padding} all kept {all_kept}"
            offset = torch.full((BATCH,), kept)
            yield LayoutCase(name, layout, seen, distances(length, kept + length, offset), queries)
            if chunk is None:  # a buffer longer than what is in it, whose length is not looked at
                free = 3
                buffer = torch.zeros(BATCH, total + free, dtype=torch.bool)
                buffer[:, :total] = True if mask is None else mask.bool()
                columns = total + free
                layout = AttentionLayout(
                    length, columns, True, offset=torch.tensor([seen_before]), offset_bound=columns, real=buffer
                )
                seen = torch.cat([seen, torch.zeros(BATCH, length, free, dtype=torch.bool)], dim=2)
                yield LayoutCase(f"buffer for {name}", layout, seen, distances(length, total + free, offset), queries)


def cross_cases():
    """A target over a source."""
    masks = {
        "none": None,
        "right": [[1] * 9, [1] * 4 + [0] * 5],
        "left": [[0] * 3 + [1] * 6, [0] * 8 + [1]],
        "gap": [[1, 0, 1, 1, 0, 0, 1, 1, 1], [0, 1, 0, 1, 0, 1, 0, 1, 0]],
        "nothing": [[0] * 9, [1] * 9],
    }
    starts = {
        "whole": {},
        "later": {"start": 5},
        "first target": {"first_target": torch.tensor([0, 2])},
        "columns": {"count_padding": True, "first_target": torch.tensor([0, 2])},
        "unknown": {"start": torch.tensor([4]), "start_bound": 6},
    }
    for (padding, rows), (name, options) in itertools.product(masks.items(), starts.items()):
        mask = None if rows is None else torch.tensor(rows)
        layout = cross_attention_layout(mask, 9, 5, **options)
        seen = torch.ones(BATCH, 9, dtype=torch.bool) if mask is None else mask.bool()
        offset = torch.zeros(BATCH, dtype=torch.long) + options.get("start", 0)
        queries = torch.ones(BATCH, 5, dtype=torch.bool)
        if not options.get("count_padding"):
            if mask is not None:
                offset = offset + mask.int().argmax(dim=1)
            if "first_target" in options:
                offset = offset - options["first_target"]
                queries = torch.arange(5) >= options["first_target"][:, None]
        seen = seen[:, None].expand(-1, 5, -1)
        yield LayoutCase(f"cross {padding} {name}", layout, seen, distances(5, 9, offset), queries)
