"""The EMA in blocks of matrix products: linear in the length, with a state going in and out.

Time is cut into blocks of m tokens. Inside a block, y = x T with T the Toeplitz matrix of the convolution kernel (both
directions in one). A block's contribution to the recurrence's state is S = x E; carrying these over the blocks gives
the state H that enters each block, whose effect on the block is H G. Everything but the carry is a batched matrix
product over channels, and the carry touches 1/m of the data.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from ..layout import first_tokens, is_open_export
from ..operators import operator
from ..relative_bias import sum_diagonals, toeplitz
from .packed import PackedBlocks
from .reference import EMACoefficients, lag_input

OPEN_BLOCK = 64
"""Tokens per block in exported graphs of any length."""
OPEN_BLOCKS = 1 << 16
"""How many blocks such a graph carries states over: as if they were forgotten after four million tokens."""


def block_size(length: int) -> int:
    """Tokens per block that are fastest at that length (docs/performance.md).

    Larger ones pay off only when many blocks share their m x m matrices.
    """
    if is_open_export(length):
        return OPEN_BLOCK
    for longest, size in ((256, 16), (2048, 32), (32768, 64)):
        if length <= longest:
            return size
    return 128


def _matrices(
    coefficients: EMACoefficients, m: int, bidirectional: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The block form's parts for N' = N states per channel, or 2N with both directions.

    Returns:
        Diagonals of T (d, 2m - 1); E (d, m, N'); G (d, N', m); carry over one block (d, N').
    """
    drive, log_decay, output, _ = coefficients
    powers = torch.exp(log_decay.unsqueeze(-1) * torch.arange(m + 1, device=log_decay.device))  # (D', N, m + 1)
    kernel = torch.einsum("dn,dnl->dl", drive * output, powers[..., :m])
    into = drive.unsqueeze(-1) * powers[..., :m]
    out_of = output.unsqueeze(-1) * powers[..., 1:]
    carry = powers[..., m]
    if not bidirectional:
        diagonals = F.pad(kernel, (m - 1, 0))
        return diagonals, into.flip(-1).transpose(1, 2).contiguous(), out_of, carry
    channels = drive.shape[0] // 2
    diagonals = F.pad(kernel[:channels], (m - 1, 0)) + F.pad(kernel[channels:].flip(-1), (0, m - 1))
    # backward states live at the start of a block and reach position j of the block before over m - j steps
    E = torch.cat([into[:channels].flip(-1), into[channels:]], dim=1).transpose(1, 2).contiguous()
    G = torch.cat([out_of[:channels], out_of[channels:].flip(-1)], dim=1)
    return diagonals, E, G, torch.cat([carry[:channels], carry[channels:]], dim=1)


def _scan(S: torch.Tensor, decay: torch.Tensor, keep: torch.Tensor | None, initial: torch.Tensor | None):
    """H[i] = keep[i] * (decay * H[i - 1] + S[i - 1]) along dimension 2, H[0] = initial or 0.

    S (d, B, K, N'), decay (d, N'), keep (B, K, N') or None, initial (d, B, N') or None -> H (d, B, K, N').
    """
    if torch.onnx.is_in_onnx_export() and keep is None and is_open_export(S.shape[2]):
        return _scan_operator(S, decay, initial)
    decay = decay.unsqueeze(1)
    if S.device.type == "cpu" and not torch.compiler.is_compiling() and not _is_differentiated(S, decay, initial):
        # few, small steps: a loop reads and writes the states once
        H = torch.empty_like(S)
        added, entering = S.unbind(2), H.unbind(2)
        if initial is None:
            entering[0].zero_()
        else:
            entering[0].copy_(initial)
        for i in range(1, len(entering)):
            torch.addcmul(added[i - 1], decay, entering[i - 1], out=entering[i])
            if keep is not None:
                entering[i].mul_(keep[:, i])
        return H
    first = torch.zeros_like(S[:, :, :1]) if initial is None else initial.unsqueeze(2)
    H = torch.cat([first, S[:, :, :-1]], dim=2)
    factor = decay.unsqueeze(2)
    if keep is not None:
        H = H * keep
        factor = factor * keep
    shift = 1
    while shift < (OPEN_BLOCKS if is_open_export(S.shape[2]) else S.shape[2]):
        H = H + factor * _later(H, shift)
        factor = factor * (factor if keep is None else _later(factor, shift))
        shift *= 2
    return H


def _scan_operator(S: torch.Tensor, decay: torch.Tensor, initial: torch.Tensor | None) -> torch.Tensor:
    """`_scan` as ONNX's operator Scan: a graph of two nodes that carries states over any number of blocks."""
    from torch._higher_order_ops.scan import scan

    def step(state: torch.Tensor, added: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return decay.unsqueeze(1) * state + added, state.clone()

    return scan(step, torch.zeros_like(S[:, :, 0]) if initial is None else initial, S, dim=2)[1]


def _later(states: torch.Tensor, shift: int) -> torch.Tensor:
    """(d, B, K, N') moved by `shift` blocks, behind zeros."""
    blocks = states.shape[2]
    if is_open_export(blocks):  # there may be fewer than `shift`
        return states.roll(shift, 2) * (torch.arange(blocks, device=states.device) >= shift).unsqueeze(1)
    return F.pad(states[:, :, :-shift], (0, 0, shift, 0))


def _flip_backward(states: torch.Tensor, bidirectional: bool) -> torch.Tensor:
    """(d, B, K, N') with the blocks of the backward states, the second half of N', in reverse order."""
    if not bidirectional:
        return states
    forward, backward = states.chunk(2, dim=-1)
    return torch.cat([forward, backward.flip(2)], dim=-1)


def _carry(
    S: torch.Tensor, decay: torch.Tensor, keep: torch.Tensor | None, initial: torch.Tensor | None, bidirectional
):
    """The states that enter each block, from what each block adds to them: (d, B, K, N') to (d, B, K, N').

    Forward states travel to later blocks, backward ones to earlier ones. `keep` (B, K) is 0 at blocks that start a
    document.
    """
    if keep is not None:
        states = S.shape[-1] // (2 if bidirectional else 1)
        passes = keep.unsqueeze(-1).expand(-1, -1, states)
        if bidirectional:
            ahead = F.pad(keep[:, 1:], (0, 1)).flip(1).unsqueeze(-1)
            passes = torch.cat([passes, ahead.expand(-1, -1, states)], dim=-1)
        keep = passes
    return _flip_backward(_scan(_flip_backward(S, bidirectional), decay, keep, initial), bidirectional)


def _carry_adjoint(dH: torch.Tensor, decay: torch.Tensor, keep: torch.Tensor | None, bidirectional: bool):
    """Gradient of `_carry` with respect to S: the same recurrence with the roles of the directions exchanged."""
    if bidirectional:
        exchanged = _carry(dH.roll(dH.shape[-1] // 2, -1), decay.roll(decay.shape[-1] // 2, -1), keep, None, True)
        return exchanged.roll(dH.shape[-1] // 2, -1)
    reverse = None if keep is None else F.pad(keep[:, 1:], (0, 1)).flip(1).unsqueeze(-1)
    return _scan(dH.flip(2), decay, reverse, None).flip(2)


def _to_blocks(x: torch.Tensor, m: int) -> torch.Tensor:
    """(B, K m, d) -> (d, B K, m), a strided view of a copy transposed block by block (faster than as a whole)."""
    return x.reshape(-1, m, x.shape[-1]).transpose(1, 2).contiguous().transpose(0, 1)


def _from_blocks(y: torch.Tensor, batch: int) -> torch.Tensor:
    """(d, B K, m) -> (B, K m, d), contiguous, in two copies that are faster than one."""
    return y.transpose(0, 1).contiguous().transpose(1, 2).reshape(batch, -1, y.shape[0])


def _is_differentiated(*tensors: torch.Tensor | None) -> bool:
    """Whether autograd or torch.func records what is done with tensors: nothing may then be written in place."""
    if torch._C._functorch.maybe_current_level() is not None:
        return True
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def _blocks_forward(x, diagonals, E, G, decay, initial, keep, bidirectional):
    """y (B, K m, d), the states (d, B, N') that enter the last block, and those that enter each, H (d, B, K, N')."""
    batch, m = x.shape[0], E.shape[1]
    X = _to_blocks(x, m)
    H = _carry(torch.bmm(X, E).unflatten(1, (batch, -1)), decay, keep, initial, bidirectional)
    y = torch.baddbmm(torch.bmm(X, toeplitz(diagonals, m, m)), H.flatten(1, 2), G)
    return _from_blocks(y, batch), H[:, :, -1].clone(), H


def _blocks_backward(needs, x, diagonals, E, G, decay, initial, keep, H, dy, dentering, bidirectional):
    """The gradients of the first six; nothing transposed or padded was kept for them."""
    batch, m = x.shape[0], E.shape[1]
    dY = _to_blocks(torch.zeros_like(x) if dy is None else dy, m)
    dH = torch.bmm(dY, G.transpose(1, 2)).unflatten(1, (batch, -1))
    if dentering is not None:
        dH[:, :, -1] += dentering
    dS = _carry_adjoint(dH, decay, keep, bidirectional)
    dx = ddiagonals = dE = dG = ddecay = dinitial = None
    if any(needs[1:5]):
        X = _to_blocks(x, m).transpose(1, 2)
        # some channels at a time, in memory that is used again
        ddiagonals = torch.cat([sum_diagonals(part) for part in torch.bmm(X, dY).split(64)])
        dE = torch.bmm(X, dS.flatten(1, 2))
        del X
        dG = torch.bmm(H.flatten(1, 2).transpose(1, 2), dY)
        ddecay = (dS * H).sum((1, 2))
    if needs[0]:
        dX = torch.bmm(dY, toeplitz(diagonals, m, m).transpose(1, 2))
        del dY
        dx = _from_blocks(dX.baddbmm_(dS.flatten(1, 2), E.transpose(1, 2)), batch)
    if needs[5]:
        dinitial = dH[:, :, 0] + decay.unsqueeze(1) * dS[:, :, 0]
    return dx, ddiagonals, dE, dG, ddecay, dinitial


_BLOCKS = operator(_blocks_forward, _blocks_backward, _blocks_forward, inputs=6, outputs=2, keeps=(2,))


def truncated(scan, x, coefficients, bidirectional, truncation, packed, state, history):
    """The first K = `truncation` lags only: s_t = decay s_{t-1} + input x_t - decay^K input x_{t-K}.

    The recurrence is linear: one pass over the inputs, and one over those of K tokens before.

    Args:
        scan: All lags: (x, coefficients, bidirectional, packed, state) to y and the state after the last token.
        x, coefficients, bidirectional, truncation, packed, state, history: As in `ema_chunked`.
    """
    length, channels = x.shape[1:]
    same = None
    if packed is not None:
        documents = packed.document_of_slot
        same = (documents[:, truncation:] == documents[:, :-truncation]).unsqueeze(-1)
    forgotten = coefficients._replace(input=lag_input(coefficients, truncation))
    forward = EMACoefficients(*(c[:channels] for c in forgotten))
    y, new_state = scan(x, coefficients, bidirectional, packed, state)
    before = x.new_zeros(x.shape[0], truncation, channels) if history is None else history
    past = torch.cat([before, x], dim=1)[:, :length]
    if same is not None:
        past = past * F.pad(same, (0, 0, truncation, 0))
    past_y, past_state = scan(past, forward, False, packed, None)
    y = y + past_y
    if not bidirectional:
        assert new_state is not None and past_state is not None
        return y, new_state + past_state
    future = F.pad(x, (0, 0, 0, truncation))[:, truncation:]
    if same is not None:
        future = future * F.pad(same, (0, 0, 0, truncation))
    # backward only: with no output, the forward half adds nothing
    backward = forgotten._replace(output=F.pad(forgotten.output[channels:], (0, 0, channels, 0)))
    future_y, _ = scan(future, backward, True, packed, None)
    return y + future_y, None


def ema_chunked(
    x: torch.Tensor,
    coefficients: EMACoefficients,
    *,
    bidirectional: bool = False,
    truncation: int | None = None,
    packed: PackedBlocks | None = None,
    state: torch.Tensor | None = None,
    history: torch.Tensor | None = None,
    block: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """See `mega_transformers.ops.ema.ema`. Returns y and, unless bidirectional, the state after the last token.

    Args:
        packed: Where packed documents go, in blocks of which the EMA is then computed.
        block: Tokens m per block; by default the fastest.
    """
    if packed is not None:
        x, block = packed.spread(x), packed.size
    elif block is None:
        block = block_size(x.shape[1])
    # a graph of open length forgets in any case
    forgets = truncation is not None and (history is not None or is_open_export(x.shape[1]) or truncation < x.shape[1])
    if forgets:
        scan = partial(_chunked, block=block)
        y, last = truncated(scan, x, coefficients, bidirectional, truncation, packed, state, history)
    else:
        y, last = _chunked(x, coefficients, bidirectional, packed, state, block)
    return (y if packed is None else packed.gather(y)), last


def _chunked(x, coefficients, bidirectional, packed, state, block):
    """All lags, of x (B, L, d)."""
    length = x.shape[1]
    # compiled graphs of open length are made by `fft`, or for some lengths each
    unknown = is_open_export(length) and packed is None
    m = block if unknown else min(block, length)
    if unknown:  # a graph must be tied neither to a single block, with or without its end, nor to one that is full
        padded = F.pad(x, (0, 0, 0, (length // m + 3) * m - length))
    else:
        padded = F.pad(x, (0, 0, 0, -length % m)) if length % m else x
    keep = None if packed is None else packed.continues.to(x.dtype)
    initial = None if state is None else state.transpose(0, 1)
    tensors = (padded, *_matrices(coefficients, m, bidirectional), initial, keep)
    if torch.compiler.is_compiling():  # a compiler fuses what the operator does step by step
        y, entering, H = _blocks_forward(*tensors, bidirectional)
        entering = H[:, :, -3] if unknown else entering
    else:
        y, entering, _ = _BLOCKS(*tensors, options=(bidirectional,))
    y = first_tokens(y, length)
    if bidirectional:
        return y, None
    if unknown:
        tail, last = length % m, padded[:, -3 * m : -2 * m]
        steps = (tail - 1 - torch.arange(m, device=x.device)).clamp(min=0)
    else:
        tail = length % m or m
        steps, last = torch.arange(tail - 1, -1, -1, device=x.device), x[:, length - tail :]
    weights = coefficients.input.unsqueeze(-1) * torch.exp(coefficients.log_decay.unsqueeze(-1) * steps)
    added = torch.einsum("btd,dnt->bdn", last, weights)
    return y, added + torch.exp(coefficients.log_decay * tail) * entering.transpose(0, 1)
