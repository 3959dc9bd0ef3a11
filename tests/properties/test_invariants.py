"""What must hold for every configuration: a row's outputs do not depend on what stands around it."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mega_transformers import MegaConfig, MegaModel

TOLERANCE = 1e-9
VOCABULARY = 23


@st.composite
def configurations(draw):
    rotary = draw(st.booleans())
    chunk = draw(st.sampled_from([None, 1, 3, 4, 8]))
    causal = draw(st.booleans())
    return MegaConfig(
        vocab_size=VOCABULARY,
        hidden_size=6,
        num_hidden_layers=2,
        intermediate_size=10,
        nffn_hidden_size=8,
        shared_representation_size=4,
        ema_projection_size=draw(st.sampled_from([1, 3])),
        bidirectional=False if causal else draw(st.booleans()),
        is_decoder=causal,
        use_cache=False,
        use_chunking=chunk is not None,
        chunk_size=-1 if chunk is None else chunk,
        truncation=draw(st.sampled_from([None, 1, 5])),
        normalize_before_mega=draw(st.booleans()),
        normalize_before_ffn=draw(st.booleans()),
        normalization_type=draw(st.sampled_from(["layernorm", "scalenorm", "rmsnorm", "batchnorm"])),
        norm_affine=draw(st.booleans()),
        attention_activation=draw(st.sampled_from(["softmax", "laplace", "relu2"])),
        use_normalized_ffn=draw(st.booleans()),
        max_positions=40,
        add_token_type_embeddings=draw(st.booleans()),
        relative_positional_bias="rotary" if rotary else "simple",
        attn_implementation=draw(st.sampled_from(["eager", "sdpa"])),
    )


def make_model(config, seed):
    torch.manual_seed(seed)
    model = MegaModel(config, add_pooling_layer=False).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # no parameter at a trivial value, decays of all speeds
            parameter.copy_(torch.randn_like(parameter) * (2.0 if "decay" in name or "damping" in name else 0.5))
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.copy_(torch.rand_like(buffer) + 0.5)
    return model


def rows(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (n,), generator=generator) for n in lengths]


def alone(model, row):
    with torch.no_grad():
        return model(row.unsqueeze(0)).last_hidden_state[0]


def close(got, expected):
    return (got - expected).abs().max().item() <= TOLERANCE * (1 + expected.abs().max().item())


any_setting = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
lengths = st.lists(st.integers(1, 20), min_size=2, max_size=4)
seeds = st.integers(0, 2**20)


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
