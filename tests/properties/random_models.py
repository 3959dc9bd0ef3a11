"""Small models of random configurations, in float64, and what compares their outputs."""

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from mega_transformers import MegaConfig, MegaModel

TOLERANCE = 1e-9
VOCABULARY = 23


@st.composite
def configurations(draw, causal=None):
    rotary = draw(st.booleans())
    chunk = draw(st.sampled_from([None, 1, 3, 4, 8]))
    causal = draw(st.booleans()) if causal is None else causal
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
    return randomised(MegaModel(config, add_pooling_layer=False), seed)


def randomised(model, seed):
    """The model in float64 and evaluation mode, with no parameter at a trivial value and decays of all speeds."""
    torch.manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
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
    if not expected.numel():
        return got.shape == expected.shape
    return (got - expected).abs().max().item() <= TOLERANCE * (1 + expected.abs().max().item())


any_setting = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
lengths = st.lists(st.integers(1, 20), min_size=2, max_size=4)
seeds = st.integers(0, 2**20)
