"""Encoding in pieces gives the numbers of one forward pass, in bounded memory."""

import pytest
import torch

from mega_transformers import MegaConfig, MegaForMaskedLM, MegaModel
from mega_transformers.long_inputs import encode

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "shared_representation_size": 8,
    "ema_projection_size": 4,
    "num_hidden_layers": 3,
    "use_chunking": True,
    "chunk_size": 16,
    "max_positions": 64,
}
KINDS = {
    "encoder": {"bidirectional": True},
    "decoder": {"bidirectional": False, "is_decoder": True},
    "post-norm, laplace, simple": {
        "bidirectional": True,
        "final_norm": True,
        "normalize_before_mega": False,
        "attention_activation": "laplace",
        "relative_positional_bias": "simple",
    },
    "rmsnorm": {"bidirectional": True, "normalization_type": "rmsnorm"},
}


def make(kind: str, dtype: torch.dtype = torch.float64, model=MegaModel, **fields):
    torch.manual_seed(0)
    made = model(MegaConfig(**SIZES, **KINDS[kind], **fields)).to(dtype).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return made


@pytest.mark.parametrize("piece", [16, 48, 304])
@pytest.mark.parametrize("padding", [None, "right", "left"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_pieces_equal_the_whole(kind, padding, piece):
    model = make(kind)
    ids = torch.randint(5, 50, (2, 301))
    mask = None
    if padding is not None:
        mask = torch.ones_like(ids)
        # a row's padding may be longer than a piece
        mask[1, 211:] = 0
        mask = mask if padding == "right" else mask.flip(1)
        if padding == "left":
            mask[1] = 1
            mask[1, :80] = 0
    with torch.no_grad():
        want = model(ids, attention_mask=mask).last_hidden_state
    got = encode(model, ids, mask, piece=piece)
    real = torch.ones_like(ids) if mask is None else mask
    assert ((got - want) * real.unsqueeze(-1)).abs().max() < 1e-11
    # the states matter: without them, pieces would compute something else
    alone = torch.cat([encode(model, part, piece=piece) for part in ids.split(piece, dim=1)], dim=1)
    assert piece > 301 or (alone - want).abs().max() > 1e-3


def test_float32_and_a_head_around_the_model():
    model = make("encoder", torch.float32, MegaForMaskedLM)
    ids, done = torch.randint(5, 50, (1, 200)), []
    with torch.no_grad():
        want = model.mega(ids).last_hidden_state
    got = encode(model, ids, piece=32, progress=done.append)
    assert got.dtype == torch.float32 and not got.requires_grad
    assert (got - want).abs().max() < 1e-4 * want.abs().max()
    assert sum(done) == 3 * 200


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({"use_chunking": False}, {}, "use_chunking=False: full attention needs the whole input at once"),
        ({"truncation": 8}, {}, "truncation=8: pieces exchange the EMA's states"),
        ({}, {"piece": 40}, "piece=40 must be a multiple of chunk_size=16"),
        ({}, {"piece": 0}, "piece=0 must be a multiple"),
        ({}, {"attention_mask": torch.tensor([[0] * 3 + [1] * 17])}, "3 tokens of padding on the left"),
    ],
)
def test_what_cannot_be_cut_is_refused(fields, options, message):
    torch.manual_seed(0)
    model = MegaModel(MegaConfig(**{**SIZES, **KINDS["encoder"], **fields})).eval()
    with pytest.raises(ValueError, match=message):
        encode(model, torch.ones(1, 20, dtype=torch.int64), **options)


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"training mode; call model\.eval"):
        encode(make("encoder").train(), torch.ones(1, 20, dtype=torch.int64))
