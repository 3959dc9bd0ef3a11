"""What must hold for every configuration: a row's outputs do not depend on what stands around it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_models import VOCABULARY, alone, any_setting, close, configurations, lengths, make_model, rows, seeds

from mega_transformers import MegaConfig


@any_setting
@given(configurations(), lengths, seeds, st.integers(0, 5), st.sampled_from([torch.bool, torch.int64, torch.float32]))
def test_padding_on_either_side_changes_nothing(config, lengths, seed, extra, mask_dtype):
    model, batch = make_model(config, seed), rows(lengths, seed)
    width = max(lengths) + extra
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (len(batch), width), generator=generator)  # garbage under the padding
    mask = torch.zeros(len(batch), width, dtype=torch.bool)
    places = []
    for i, row in enumerate(batch):
        left = int(torch.randint(0, width - len(row) + 1, (), generator=generator))
        place = slice(left, left + len(row))
        ids[i, place], mask[i, place] = row, True
        places.append(place)
    with torch.no_grad():
        output = model(ids, attention_mask=mask.to(mask_dtype)).last_hidden_state
    assert output.isfinite().all()
    for i, row in enumerate(batch):
        assert close(output[i, places[i]], alone(model, row))


@any_setting
@given(configurations(), lengths, seeds, st.sampled_from(["position_ids", "cu_seq_lens_q", "seq_idx"]))
def test_packing_with_others_changes_nothing(config, lengths, seed, how):
    limit = config.max_positions if not config.use_chunking else 10**6
    while sum(lengths) > limit:
        lengths = lengths[:-1]
    model, batch = make_model(config, seed), rows(lengths, seed)
    counts = torch.tensor([len(row) for row in batch])
    packing = {
        "position_ids": torch.cat([torch.arange(n) for n in counts])[None],
        "cu_seq_lens_q": torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]).int(),
        "seq_idx": torch.repeat_interleave(torch.arange(len(batch)), counts)[None].int(),
    }[how]
    with torch.no_grad():
        output = model(torch.cat(batch)[None], **{how: packing}).last_hidden_state[0]
    for got, row in zip(output.split(counts.tolist()), batch):
        assert close(got, alone(model, row))


@any_setting
@given(configurations(), st.integers(1, 25), seeds)
def test_an_all_padding_row_is_finite_and_harmless(config, length, seed):
    model = make_model(config, seed)
    (row,) = rows([length], seed)
    mask = torch.tensor([[1] * length, [0] * length])
    with torch.no_grad():
        output = model(torch.stack([row, row]), attention_mask=mask).last_hidden_state
    assert output.isfinite().all()
    assert close(output[0], alone(model, row))


@any_setting
@given(configurations(), st.integers(2, 25), seeds)
def test_a_decoder_sees_no_future_and_an_encoder_does(config, length, seed):
    model = make_model(config, seed)
    (row,) = rows([length], seed)
    changed = row.clone()
    changed[-1] = 3 + (changed[-1] - 3 + 1) % (VOCABULARY - 3)
    before, after = alone(model, row), alone(model, changed)
    if config.is_decoder:
        assert close(after[:-1], before[:-1])
    elif config.bidirectional and config.truncation is None:
        # the EMA looks ahead through every layer
        assert (after[0] - before[0]).abs().max() > 0


@any_setting
@given(configurations(), lengths, seeds)
def test_implementations_agree_with_every_gradient(config, lengths, seed):
    batch = rows(lengths, seed)
    width = max(lengths)
    ids = torch.full((len(batch), width), 1)
    mask = torch.zeros(len(batch), width, dtype=torch.long)
    for i, row in enumerate(batch):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    results = []
    for implementation in ("eager", "sdpa"):
        model = make_model(config, seed)
        model.set_attn_implementation(implementation)
        output = model(ids, attention_mask=mask).last_hidden_state
        (output * mask.unsqueeze(-1)).square().sum().backward()
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]
        results.append([output * mask.unsqueeze(-1), *gradients])
    for got, expected in zip(*results):
        assert close(got, expected)


@pytest.mark.parametrize("chunk_size", [3, 8])
def test_more_tokens_than_max_positions_with_chunks(chunk_size):
    config = MegaConfig(
        vocab_size=VOCABULARY,
        hidden_size=6,
        num_hidden_layers=1,
        shared_representation_size=4,
        max_positions=8,
        use_chunking=True,
        chunk_size=chunk_size,
        relative_positional_bias="simple",
        add_token_type_embeddings=True,
    )
    (row,) = rows([50], 0)
    output = alone(make_model(config, 0), row)
    assert output.shape == (50, 6)
    assert output.isfinite().all()
