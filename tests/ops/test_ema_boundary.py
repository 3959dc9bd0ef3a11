"""A sequence cut into pieces, whose only exchange are states, equals the sequence as a whole."""

import pytest
import torch
from test_ema import deviation, make_parameters

from mega_transformers.ops.ema import ema, ema_boundary, ema_coefficients, ema_continuation, ema_entering

CUTS = [[75], [1, 31, 32, 11], [32, 32, 11], [1, 1, 73]]


def in_pieces(x, coefficients, lengths, bidirectional, reset):
    pieces = x.split(lengths, dim=1)
    resets = [None] * len(lengths) if reset is None else reset.split(lengths, dim=1)
    left = torch.stack(
        [ema_boundary(x, coefficients, bidirectional=bidirectional, reset=r) for x, r in zip(pieces, resets)]
    )
    passes = None if reset is None else torch.stack([~r.any(1) for r in resets])
    entering = ema_entering(left, coefficients.log_decay, lengths, bidirectional=bidirectional, passes=passes)
    return torch.cat(
        [
            ema(x, coefficients, bidirectional=bidirectional, reset=r, backend="reference")[0]
            + ema_continuation(states, coefficients, x.shape[1], bidirectional=bidirectional, reset=r)
            for x, r, states in zip(pieces, resets, entering)
        ],
        dim=1,
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("lengths", CUTS)
def test_pieces_equal_the_whole_with_every_gradient(lengths, bidirectional, packed, dtype):
    torch.manual_seed(0)
    parameters = [p.detach().to(dtype).requires_grad_() for p in make_parameters(3, 4, bidirectional)]
    x = torch.randn(2, 75, 3, dtype=dtype, requires_grad=True)
    reset = None
    if packed:  # documents within a piece, over several, and starting with one
        reset = torch.zeros(2, 75, dtype=torch.bool)
        reset[0, [0, 20, 21, 32]] = True
        reset[1, [0, 64]] = True
    weight = torch.randn_like(x)
    results = []
    for pieces in (False, True):
        coefficients = ema_coefficients(*parameters)
        if pieces:
            y = in_pieces(x, coefficients, lengths, bidirectional, reset)
        else:
            y, _ = ema(x, coefficients, bidirectional=bidirectional, reset=reset, backend="reference")
        results.append([y, *torch.autograd.grad((y * weight).sum(), [x, *parameters])])
    for got, want in zip(results[1], results[0]):
        assert deviation(got, want) < (1e-12 if dtype == torch.float64 else 2e-5)


def test_what_is_left_forward_is_the_state_after_the_last_token():
    parameters = make_parameters(3, 4, False)
    x = torch.randn(2, 77, 3, dtype=torch.float64)
    coefficients = ema_coefficients(*parameters)
    _, state = ema(x, coefficients, return_state=True, backend="reference")
    assert deviation(ema_boundary(x, coefficients), state) < 1e-13


def test_nothing_reaches_over_a_document_start():
    coefficients = ema_coefficients(*make_parameters(3, 4, True))
    x = torch.randn(1, 8, 3, dtype=torch.float64)
    reset = torch.zeros(1, 8, dtype=torch.bool)
    reset[0, 0] = True
    left = ema_boundary(x, coefficients, bidirectional=True, reset=reset)
    assert left[:, :3].abs().min() > 0 and left[:, 3:].abs().max() == 0
    states = torch.randn_like(left)
    added = ema_continuation(states, coefficients, 8, bidirectional=True, reset=reset)
    only_ahead = ema_continuation(
        states * torch.tensor([0, 0, 0, 1, 1, 1]).view(1, 6, 1), coefficients, 8, bidirectional=True
    )
    assert deviation(added, only_ahead) < 1e-14 and only_ahead.abs().max() > 0
