"""What a layout says of itself, for every kind of layout; who sees whom is tested with attention."""

import itertools
from dataclasses import fields

import pytest
import torch
from accelerate.utils import send_to_device
from layouts import BATCH, cached_cases, cross_cases, self_cases

from mega_transformers.ops.layout import self_attention_layout

CASES = [*self_cases(), *cached_cases(), *cross_cases()]
CPU = torch.device("cpu")


def test_matrix_and_counts():
    for case in CASES:
        layout, real = case.layout, case.real_queries
        visible = layout.visible(CPU)
        visible = torch.ones(1, 1, 1, dtype=torch.bool) if visible is None else visible
        visible = visible.expand(BATCH, layout.queries, layout.keys)
        assert torch.equal(visible[real], case.seen[real]), case.name
        counts = torch.as_tensor(layout.counts(CPU)).expand(BATCH, layout.queries)
        assert torch.equal(counts[real], case.seen.sum(-1)[real]), case.name


def test_distances_cover_what_is_seen():
    for case in CASES:
        low, high = case.layout.distances
        seen = case.distances[case.seen & case.real_queries.unsqueeze(-1)]
        assert not len(seen) or (low <= seen.min() and seen.max() <= high), case.name


def test_parts_are_the_whole():
    for case in CASES:
        parts = case.layout.parts()
        assert parts[0].start == 0 and parts[-1].stop == case.layout.queries
        assert all(a.stop == b.start for a, b in itertools.pairwise(parts))
        if case.layout.chunk is None:
            assert len(parts) == 1


@pytest.mark.parametrize("packed", [False, True])
def test_accelerate_moves_a_layout(packed):
    """As it does with all arguments of a layer on another device."""
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, :3] = 0
    reset = torch.zeros(2, 9, dtype=torch.bool) if packed else None
    layout = self_attention_layout(mask, 9, chunk_size=4, reset=reset)
    moved = send_to_device({"layout": layout}, torch.device("meta"))["layout"]
    for name in ("start", "stop", "real", "tokens"):
        assert getattr(moved, name).device.type == "meta" and getattr(layout, name).device.type == "cpu"
    assert (moved.queries, moved.chunk, moved.causal) == (9, 4, False)


def test_a_layout_is_copied_by_its_fields():
    """As compressed-tensors does; what was worked out for the original is not taken along."""
    layout = self_attention_layout(None, 9, chunk_size=4)
    layout.parts()
    copy = type(layout)(**{field.name: getattr(layout, field.name) for field in fields(layout)})
    assert copy == layout and layout.plans and not copy.plans
