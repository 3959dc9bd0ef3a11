"""Whatever is cached: tokens that come in pieces give what they give at once, for every configuration."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_models import VOCABULARY, any_setting, close, configurations, make_model, seeds
from tiny import CAUSAL, tiny_config
from transformers import DynamicCache


@st.composite
def padded_batches(draw, longest=24):
    """ids (B, L) and mask (B, L): rows with padding on the left, and some on the right."""
    batch, length = draw(st.integers(1, 3)), draw(st.integers(2, longest))
    generator = torch.Generator().manual_seed(draw(seeds))
    ids = torch.randint(3, VOCABULARY, (batch, length), generator=generator)
    mask = torch.ones(batch, length, dtype=torch.long)
    if draw(st.booleans()):
        for row in mask:
            row[: draw(st.integers(0, length - 1))] = 0
    if draw(st.booleans()):
        gap = draw(st.integers(0, length - 1))
        mask[-1, gap : gap + draw(st.integers(1, 3))] = 0
    return ids, mask


def pieces(draw_cuts, length):
    cuts = sorted({min(cut, length) for cut in draw_cuts} | {length})
    return list(zip([0, *cuts], cuts))


def forward(model, ids, mask, cache=None, **kwargs):
    with torch.no_grad():
        return model(ids, attention_mask=mask, cache=cache, use_cache=cache is not None, **kwargs)


def in_pieces(model, ids, mask, cuts, cache=None):
    cache = DynamicCache(config=model.config) if cache is None else cache
    outputs = []
    for start, stop in cuts:
        seen = None if mask is None else mask[:, :stop]
        outputs.append(forward(model, ids[:, start:stop], seen, cache).last_hidden_state)
        assert cache.get_seq_length() == stop
    return torch.cat(outputs, dim=1), cache


cuts = st.lists(st.integers(1, 24), max_size=8)


@any_setting
@given(configurations(causal=True), padded_batches(), cuts, seeds)
def test_pieces_give_what_the_whole_gives(config, batch, cuts, seed):
    model, (ids, mask) = make_model(config, seed), batch
    whole = forward(model, ids, mask).last_hidden_state
    got, _ = in_pieces(model, ids, mask, pieces(cuts, ids.shape[1]))
    assert close(got[mask.bool()], whole[mask.bool()])


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_piece_that_begins_with_a_hole(implementation):
    """Its chunks count from its first column, and not from its first real token."""
    config = tiny_config(**CAUSAL, use_chunking=True, chunk_size=4, attn_implementation=implementation)
    model, ids = make_model(config, 0), torch.arange(3, 12).unsqueeze(0)
    mask = torch.tensor([[1, 1, 0, 0, 0, 1, 1, 1, 1]])
    whole = forward(model, ids, mask).last_hidden_state
    got, _ = in_pieces(model, ids, mask, [(0, 4), (4, 9)])
    assert close(got[mask.bool()], whole[mask.bool()])


@any_setting
@given(configurations(causal=True), padded_batches(), cuts, seeds)
def test_pieces_in_float32(config, batch, cuts, seed):
    model, (ids, mask) = make_model(config, seed).float(), batch
    whole = forward(model, ids, mask).last_hidden_state[mask.bool()]
    got, _ = in_pieces(model, ids, mask, pieces(cuts, ids.shape[1]))
    deviation = (got[mask.bool()] - whole).abs().max() / (1 + whole.abs().max()) if mask.any() else 0
    assert deviation <= 2e-5


@any_setting
@given(configurations(causal=True), padded_batches(), seeds)
def test_token_by_token_without_a_mask(config, batch, seed):
    model, (ids, _) = make_model(config, seed), batch
    whole = forward(model, ids, None).last_hidden_state
    got, _ = in_pieces(model, ids, None, [(t, t + 1) for t in range(ids.shape[1])])
    assert close(got, whole)


@any_setting
@given(configurations(causal=True), padded_batches(), st.integers(1, 23), seeds)
def test_attention_weights_of_cached_passes(config, batch, cut, seed):
    """Rows of the whole's weights, where they are of one group."""
    if config.use_chunking:
        config.use_chunking, config.chunk_size = False, -1
    model, (ids, mask) = make_model(config, seed), batch
    cut = min(cut, ids.shape[1] - 1)
    whole = forward(model, ids, mask, output_attentions=True).attentions
    _, cache = in_pieces(model, ids, mask, [(0, cut)])
    later = forward(model, ids[:, cut:], mask, cache, output_attentions=True).attentions
    real = mask[:, cut:].bool()
    for got, expected in zip(later, whole):
        assert got.shape == (ids.shape[0], 1, ids.shape[1] - cut, ids.shape[1])
        assert close(got[:, 0][real], expected[:, 0, cut:][real])


@any_setting
@given(configurations(causal=True), padded_batches(), cuts, st.data(), seeds)
def test_a_cropped_cache_never_saw_what_was_cropped(config, batch, cuts, data, seed):
    model, (ids, mask) = make_model(config, seed), batch
    length = ids.shape[1]
    first = data.draw(st.integers(0, length - 1))
    kept = data.draw(st.integers(first, length - 1))
    cache = DynamicCache(config=model.config)
    if first:
        in_pieces(model, ids, mask, [(0, first)], cache)
    cache.activate_past_recording()
    in_pieces(model, ids, mask, [(first + a, first + b) for a, b in pieces(cuts, length - first)], cache)
    cache.crop(kept - length)
    assert cache.get_seq_length() == kept
    other = torch.randint(3, VOCABULARY, ids.shape)
    other[:, :kept] = ids[:, :kept]
    got, _ = in_pieces(model, other, mask, [(kept, length)], cache)
    real = mask[:, kept:].bool()
    assert close(got[real], forward(model, other, mask).last_hidden_state[:, kept:][real])


@any_setting
@given(configurations(causal=True), padded_batches(), st.integers(1, 23), seeds)
def test_rows_can_be_repeated_reordered_selected(config, batch, cut, seed):
    model, (ids, mask) = make_model(config, seed), batch
    rows, length = ids.shape
    cut = min(cut, length - 1)
    whole = forward(model, ids, mask).last_hidden_state[:, cut:]
    _, cache = in_pieces(model, ids, mask, [(0, cut)])
    generator = torch.Generator().manual_seed(seed)
    order = torch.randint(0, rows, (rows,), generator=generator)
    repeated, reordered, selected = copy.deepcopy(cache), copy.deepcopy(cache), cache
    repeated.batch_repeat_interleave(2)
    reordered.reorder_cache(order)
    selected.batch_select_indices(torch.tensor([rows - 1]))
    for changed, index in (
        (repeated, torch.arange(rows).repeat_interleave(2)),
        (reordered, order),
        (selected, torch.tensor([rows - 1])),
    ):
        got, _ = in_pieces(model, ids[index], mask[index], [(cut, length)], changed)
        real = mask[index, cut:].bool()
        assert close(got[real], whole[index][real])


@pytest.mark.parametrize("chunk_size", [4, 16])
@pytest.mark.parametrize("padding", [0, 3])
def test_memory_with_chunks_is_constant(chunk_size, padding):
    config = tiny_config(**CAUSAL, vocab_size=VOCABULARY, use_chunking=True, chunk_size=chunk_size)
    model = make_model(config, 0)
    ids = torch.randint(3, VOCABULARY, (2, 1000))
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    cache = DynamicCache(config=config)
    steps = [(0, 700), *((t, t + 1) for t in range(700, 1000))]
    sizes = set()
    for start, stop in steps:
        in_pieces(model, ids, mask, [(start, stop)], cache)
        layer = cache.layers[0]
        assert layer.keys.shape[2] < chunk_size
        sizes.add(layer._keys.buffer.numel())
    assert max(sizes) <= 2 * 64 * 2 * (chunk_size + 64)
