"""Triton kernels of the EMA in blocks; `triton_scan` is what calls them.

A row is cut into tiles of K blocks of M tokens. A program has one tile of C channels as (C, K, M), in float32:

- `leaving_kernel`: the state that a tile adds to its neighbour, a product with (C, M, N) and a sum over blocks;
- `carry_kernel`: from these the states that enter every tile, one program for all tiles of a row;
- `output_kernel`: the outputs, from a Toeplitz product within blocks and the states that enter each block;
- `gradient_kernel`: sums over tokens that make the gradients of the coefficients.

The backward pass of the inputs is the same as the forward pass, of `dy`, with drive and output exchanged, and time
reversed. A state that travels forward lives at the last token of the part it comes from, one that travels backward too
lives at the last token of the part it enters: each is the other's adjoint.
"""

from __future__ import annotations

try:  # in a try, since transformers wants what code beside a model imports, unless it is there
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("Triton's kernels need Triton: pip install 'mega-transformers[gpu]'") from error

PRECISION = tl.constexpr("tf32x3")
"""Of matrix products: three products in TF32, which together are as good as one in float32."""


@triton.jit
def _combine(decay, state, next_decay, next_state):
    """Two steps of the recurrence s <- decay * s + state as one."""
    return decay * next_decay, next_decay * state + next_state


@triton.jit
def _locate(tiles, channels, C: tl.constexpr):
    """The row, tile and channels of a program; neighbours in memory run side by side."""
    parts = tl.cdiv(channels, C)
    program = tl.program_id(0)
    c = (program % parts) * C + tl.arange(0, C)
    return ((program // parts) // tiles).to(tl.int64), (program // parts) % tiles, c


@triton.jit
def _tokens(slots, row, first, low, high, length, count, PACKED: tl.constexpr, K: tl.constexpr, M: tl.constexpr):
    """Tokens (K, M) of a row from slot `first` on, and which of them exist between the slots `low` and `high`."""
    slot = first + tl.arange(0, K)[:, None] * M + tl.arange(0, M)[None, :]
    real = (slot >= low) & (slot < high) & (slot < count)
    if PACKED:
        token = tl.load(slots + row * count + slot, mask=real, other=length)
        return token, real & (token < length)
    return slot, real


@triton.jit
def _tile(x, row, token, real, c, channels, row_stride, token_stride, channel_stride):
    """Values (C, K, M) of tokens, 0 where there are none."""
    place = row * row_stride + token[None, :, :].to(tl.int64) * token_stride + c[:, None, None] * channel_stride
    return tl.load(x + place, mask=real[None, :, :] & (c < channels)[:, None, None], other=0.0).to(tl.float32)


@triton.jit
def _coefficients(table, c, channels, states, N: tl.constexpr):
    """(C, N) of a table (channels, states), 0 outside of it."""
    n = tl.arange(0, N)
    mask = (c < channels)[:, None] & (n < states)[None, :]
    return tl.load(table + c[:, None] * states + n[None, :], mask=mask, other=0.0)


@triton.jit
def _powers(log_decay, BACKWARD: tl.constexpr, INTO: tl.constexpr, M: tl.constexpr):
    """Powers of decays (C, M, N) between the tokens of a block and the state that leaves (`INTO`) or enters it."""
    j = tl.arange(0, M)
    exponent = j + 1 if INTO == BACKWARD else M - 1 - j
    return tl.exp(log_decay[:, None, :] * exponent[None, :, None]), exponent


@triton.jit
def _states(table, row, tile, tiles, c, channels, states, N: tl.constexpr):
    """Where the states (C, N) of a tile are in (rows, tiles, channels, states), and which of them exist."""
    n = tl.arange(0, N)
    place = ((row * tiles + tile) * channels + c[:, None]) * states + n[None, :]
    return table + place, (c < channels)[:, None] & (n < states)[None, :]


@triton.jit
def _entering(
    x, row, tile, c, drive, log_decay, entry, slots, keeps, length, count, channels, row_stride, token_stride,
    channel_stride, BACKWARD: tl.constexpr, PACKED: tl.constexpr, K: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """The states (C, K, N) that enter each block of a tile, of which `entry` (C, N) enters the tile."""
    start = tile * K * M
    k = tl.arange(0, K)
    # the block before (after) each: the first (last) has none in this tile
    first = start + M if BACKWARD else start - M
    token, real = _tokens(slots, row, first, start, start + K * M, length, count, PACKED, K, M)
    X = _tile(x, row, token, real, c, channels, row_stride, token_stride, channel_stride)
    powers, _ = _powers(log_decay, BACKWARD, True, M)
    added = tl.dot(X, drive[:, None, :] * powers, input_precision=PRECISION)
    edge = (k == (K - 1 if BACKWARD else 0))[None, :, None]
    added = tl.where(edge, entry[:, None, :], added)
    decay = tl.exp(log_decay * M)[:, None, :] + tl.zeros_like(added)
    if PACKED:
        block = tile * K + k + (1 if BACKWARD else 0)
        keep = tl.load(keeps + row * (count // M) + block, mask=block < count // M, other=0).to(tl.float32)[
            None, :, None
        ]
        if BACKWARD:  # what enters the tile has passed its border
            keep = tl.where(edge, 1.0, keep)
        added *= keep
        decay *= keep
    _, states = tl.associative_scan((decay, added), 1, _combine, reverse=BACKWARD)
    return states


@triton.jit
def leaving_kernel(
    x, out, drives, log_decays, slots, keeps, tiles, length, count, channels, states, row_stride, token_stride,
    channel_stride, BACKWARD: tl.constexpr, PACKED: tl.constexpr, C: tl.constexpr, K: tl.constexpr, M: tl.constexpr,
    N: tl.constexpr,
):  # fmt: skip
    """The state (rows, tiles, channels, states) that each tile adds to the one after (before) it."""
    row, tile, c = _locate(tiles, channels, C)
    start = tile * K * M
    k = tl.arange(0, K)
    token, real = _tokens(slots, row, start, start, start + K * M, length, count, PACKED, K, M)
    X = _tile(x, row, token, real, c, channels, row_stride, token_stride, channel_stride)
    log_decay = _coefficients(log_decays, c, channels, states, N)
    powers, _ = _powers(log_decay, BACKWARD, True, M)
    drive = _coefficients(drives, c, channels, states, N)
    added = tl.dot(X, drive[:, None, :] * powers, input_precision=PRECISION)
    blocks = k if BACKWARD else K - 1 - k  # that are passed on the way
    added *= tl.exp(log_decay[:, None, :] * (blocks * M)[None, :, None])
    if PACKED:  # without the start of a document on the way
        block = tile * K + k
        starts = tl.load(keeps + row * (count // M) + block, mask=block < count // M, other=1) == 0
        starts = starts.to(tl.int32)
        if BACKWARD:
            starts = tl.where(k == 0, 0, starts)  # which the carry sees to
        passed = tl.cumsum(starts, 0)
        if not BACKWARD:
            passed = tl.sum(starts, 0) - passed
        added *= (passed == 0).to(tl.float32)[None, :, None]
    place, mask = _states(out, row, tile, tiles, c, channels, states, N)
    tl.store(place, tl.sum(added, 1), mask=mask)


@triton.jit
def carry_kernel(
    leaving, entering, log_decays, initial, extra, final, passes, begins, tiles, channels, states, size,
    BACKWARD: tl.constexpr, PACKED: tl.constexpr, INITIAL: tl.constexpr, EXTRA: tl.constexpr, C: tl.constexpr,
    N: tl.constexpr,
):  # fmt: skip
    """The states that enter every tile, and in `final` the one that leaves the last.

    `initial` enters the first tile; `extra` joins what leaves the first tile (of those in order of travel).
    """
    row, _, c = _locate(1, channels, C)
    decay = tl.exp(_coefficients(log_decays, c, channels, states, N) * size)
    state = tl.zeros((C, N), tl.float32)
    if INITIAL:
        place, mask = _states(initial, row, 0, 1, c, channels, states, N)
        state = tl.load(place, mask=mask, other=0.0)
    for i in range(tiles):
        tile = tiles - 1 - i if BACKWARD else i
        place, mask = _states(entering, row, tile, tiles, c, channels, states, N)
        tl.store(place, state, mask=mask)
        through = decay
        if PACKED:
            through = decay * tl.load(passes + row * tiles + tile).to(tl.float32)
        place, mask = _states(leaving, row, tile, tiles, c, channels, states, N)
        added = tl.load(place, mask=mask, other=0.0)
        if PACKED:
            keep = tl.load(begins + row * tiles + tile).to(tl.float32)
            state = keep * (added + through * state) if BACKWARD else added + through * keep * state
        else:
            state = added + through * state
        if EXTRA and i == 0:
            place, mask = _states(extra, row, 0, 1, c, channels, states, N)
            state += tl.load(place, mask=mask, other=0.0)
    place, mask = _states(final, row, 0, 1, c, channels, states, N)
    tl.store(place, state, mask=mask)


@triton.jit
def _of_states(
    x, row, tile, c, drives, log_decays, outputs, entries, slots, keeps, tiles, length, count, channels, states,
    row_stride, token_stride, channel_stride, BACKWARD: tl.constexpr, PACKED: tl.constexpr, K: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """What the tokens of other blocks add to the outputs (C, K, M) of a tile, in one direction."""
    log_decay = _coefficients(log_decays, c, channels, states, N)
    drive = _coefficients(drives, c, channels, states, N)
    place, mask = _states(entries, row, tile, tiles, c, channels, states, N)
    entering = _entering(
        x, row, tile, c, drive, log_decay, tl.load(place, mask=mask, other=0.0), slots, keeps, length, count, channels,
        row_stride, token_stride, channel_stride, BACKWARD, PACKED, K, M,
    )  # fmt: skip
    powers, _ = _powers(log_decay, BACKWARD, False, M)
    output = _coefficients(outputs, c, channels, states, N)
    G = tl.permute(output[:, None, :] * powers, (0, 2, 1))
    return tl.dot(entering, G, input_precision=PRECISION)


@triton.jit
def output_kernel(
    x, y, diagonals, drives, log_decays, outputs, entries, slots, keeps, rows, tiles, length, count, channels, states,
    row_stride, token_stride, channel_stride, FORWARD: tl.constexpr, BACKWARD: tl.constexpr, PACKED: tl.constexpr,
    C: tl.constexpr, K: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """y of x, in the directions asked for, of which the first comes first in all tables."""
    row, tile, c = _locate(tiles, channels, C)
    start = tile * K * M
    token, real = _tokens(slots, row, start, start, start + K * M, length, count, PACKED, K, M)
    X = _tile(x, row, token, real, c, channels, row_stride, token_stride, channel_stride)
    j, i = tl.arange(0, M)[:, None], tl.arange(0, M)[None, :]
    place = c[:, None, None] * (2 * M - 1) + (M - 1 + i - j)[None, :, :]
    T = tl.load(diagonals + place, mask=(c < channels)[:, None, None], other=0.0)
    Y = tl.dot(X, T, input_precision=PRECISION)
    if FORWARD:
        Y += _of_states(
            x, row, tile, c, drives, log_decays, outputs, entries, slots, keeps, tiles, length, count, channels,
            states, row_stride, token_stride, channel_stride, False, PACKED, K, M, N,
        )  # fmt: skip
    if BACKWARD:
        skipped = channels * states if FORWARD else 0
        Y += _of_states(
            x, row, tile, c, drives + skipped, log_decays + skipped, outputs + skipped,
            entries + skipped * rows.to(tl.int64) * tiles, slots, keeps, tiles, length, count, channels, states,
            row_stride, token_stride, channel_stride, True, PACKED, K, M, N,
        )  # fmt: skip
    place = (row * length + token[None, :, :].to(tl.int64)) * channels + c[:, None, None]
    mask = real[None, :, :] & (c < channels)[:, None, None]
    tl.store(y + place, Y.to(y.dtype.element_ty), mask=mask)


@triton.jit
def gradient_kernel(
    x, dy, d_toeplitz, d_drives, d_log_decays, d_outputs, drives, log_decays, outputs, entries, adjoints, slots, keeps,
    rows, tiles, length, count, channels, states, splits, row_stride, token_stride, channel_stride, dy_row_stride,
    dy_token_stride, dy_channel_stride, BACKWARD: tl.constexpr, PACKED: tl.constexpr, C: tl.constexpr, K: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Sums over a share of the tiles of one direction: (splits, channels, ...).

    The Toeplitz matrix belongs to both directions; without `BACKWARD` its gradient is summed too.
    """
    parts = tl.cdiv(channels, C)
    c = (tl.program_id(0) % parts) * C + tl.arange(0, C)
    split = tl.program_id(0) // parts
    log_decay = _coefficients(log_decays, c, channels, states, N)
    drive = _coefficients(drives, c, channels, states, N)
    output = _coefficients(outputs, c, channels, states, N)
    d_drive = tl.zeros((C, N), tl.float32)
    d_log_decay = tl.zeros((C, N), tl.float32)
    d_output = tl.zeros((C, N), tl.float32)
    dT = tl.zeros((C, M, M), tl.float32)
    into, into_exponent = _powers(log_decay, BACKWARD, True, M)
    out_of, out_exponent = _powers(log_decay, BACKWARD, False, M)
    for item in range(split, rows * tiles, splits):
        row, tile = (item // tiles).to(tl.int64), item % tiles
        start = tile * K * M
        token, real = _tokens(slots, row, start, start, start + K * M, length, count, PACKED, K, M)
        X = _tile(x, row, token, real, c, channels, row_stride, token_stride, channel_stride)
        dY = _tile(dy, row, token, real, c, channels, dy_row_stride, dy_token_stride, dy_channel_stride)
        place, mask = _states(entries, row, tile, tiles, c, channels, states, N)
        H = _entering(
            x, row, tile, c, drive, log_decay, tl.load(place, mask=mask, other=0.0), slots, keeps, length, count,
            channels, row_stride, token_stride, channel_stride, BACKWARD, PACKED, K, M,
        )  # fmt: skip
        place, mask = _states(adjoints, row, tile, tiles, c, channels, states, N)
        dS = _entering(
            dy, row, tile, c, output, log_decay, tl.load(place, mask=mask, other=0.0), slots, keeps, length, count,
            channels, dy_row_stride, dy_token_stride, dy_channel_stride, not BACKWARD, PACKED, K, M,
        )  # fmt: skip
        XT, dYT = tl.permute(X, (0, 2, 1)), tl.permute(dY, (0, 2, 1))
        dE = tl.dot(XT, dS, input_precision=PRECISION) * into
        dG = tl.dot(dYT, H, input_precision=PRECISION) * out_of
        if not BACKWARD:
            dT += tl.dot(XT, dY, input_precision=PRECISION)
        d_drive += tl.sum(dE, 1)
        d_output += tl.sum(dG, 1)
        d_log_decay += drive * tl.sum(dE * into_exponent[None, :, None], 1)
        d_log_decay += output * tl.sum(dG * out_exponent[None, :, None], 1)
        d_log_decay += M * tl.exp(log_decay * M) * tl.sum(dS * H, 1)
    place, mask = _states(d_drives, 0, split, splits, c, channels, states, N)
    tl.store(place, d_drive, mask=mask)
    place, mask = _states(d_log_decays, 0, split, splits, c, channels, states, N)
    tl.store(place, d_log_decay, mask=mask)
    place, mask = _states(d_outputs, 0, split, splits, c, channels, states, N)
    tl.store(place, d_output, mask=mask)
    if not BACKWARD:
        j, i = tl.arange(0, M)[:, None], tl.arange(0, M)[None, :]
        place = ((split * channels + c)[:, None, None] * M + j[None, :, :]) * M + i[None, :, :]
        tl.store(d_toeplitz + place, dT, mask=(c < channels)[:, None, None])
