"""Triton's kernels of attention; imported only where they run.

`t` is a score as the core of its activation takes it: queries times keys, times a scale per query, plus a bias by
distance. Whatever an activation does to it before (`ELEMENTWISE`; for softmax the factor log2 e, since the kernels use
powers of two) is in the scale and the bias already. Widths and blocks are constants; lengths are not, so that none
compiles anew.
"""

from __future__ import annotations

try:  # in a try, since transformers wants what code beside a model imports, unless it is there
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("Triton's kernels need Triton: pip install 'mega-transformers[gpu]'") from error

VARYING = ["queries", "keys", "entries", "middle", "seed", "tiles"]
"""Arguments whose values are not compiled in, where 1 or a multiple of 16 would be kernels of their own."""
PLACES = ["key_tiles", "batch_start", "query_start", "key_start"]

LN2 = tl.constexpr(0.6931471805599453)
INVERSE_SQRT_PI = tl.constexpr(0.5641895835477563)


@triton.jit
def added(total, a, b, PRECISION: tl.constexpr):
    """total + a @ b in float32; the interpreter knows no products of bfloat16."""
    if PRECISION == "interpreted":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
    else:
        return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def keys_of_dropout(seed, batch, rows):
    """Two random words (n,) of each query, by which `kept` draws: Philox of query and row of the batch."""
    query = rows.to(tl.uint32)
    zero = query * 0
    first, second, _, _ = tl.philox(seed, query, zero + batch.to(tl.uint32), zero, zero)
    return first, second


@triton.jit
def kept(first, second, columns, DROPPED: tl.constexpr):
    """A dropout mask (queries, columns), False with probability DROPPED / 65536; the same in tiles of any size.

    Philox for every score would cost more than the matrix products. So it gives each query two words, and with these
    the number of a key goes through MurmurHash3's finaliser.
    """
    x = first[:, None] + (columns.to(tl.uint32) * 0x9E3779B9)[None, :]
    x = (x ^ (x >> 16)) * 0x85EBCA6B + second[:, None]
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return (x >> 16) >= DROPPED  # the finaliser's last step leaves these bits as they are


@triton.jit
def biased(
    products, scale, table, rows, columns, entries, middle, SHIFT: tl.constexpr, BIASED: tl.constexpr
):  # fmt: skip
    """t (rows, columns), of queries times keys. Entry `middle` of the bias belongs to row 0 and column 0."""
    t = products * scale[:, None]
    if BIASED:
        entry = columns[None, :] - rows[:, None] + middle
        t += tl.load(table + tl.minimum(tl.maximum(entry, 0), entries - 1))
    else:
        t -= SHIFT
    return t


@triton.jit
def activated(t, ACTIVATION: tl.constexpr):
    if ACTIVATION == "laplace":
        return 0.5 + 0.5 * tl.erf(t)
    else:
        positive = tl.maximum(t, 0.0)
        return positive * positive


@triton.jit
def derivative(t, ACTIVATION: tl.constexpr):
    """Of `activated`."""
    if ACTIVATION == "laplace":
        return tl.exp(-t * t) * INVERSE_SQRT_PI
    else:
        return 2.0 * tl.maximum(t, 0.0)


@triton.jit
def seen(start, stop, columns, real, real_start, real_stride, keys, PADDED: tl.constexpr):
    """Which of `columns` (n,) the queries see, whose ranges are `start` and `stop` (m,): (m, n)."""
    visible = (columns[None, :] >= start[:, None]) & (columns[None, :] < stop[:, None])
    if PADDED:
        token = tl.load(real + real_start + columns.to(tl.int64) * real_stride, mask=columns < keys, other=0)
        visible = visible & (token != 0)[None, :]
    return visible


@triton.jit(do_not_specialize=VARYING)
def forward_kernel(
    q, k, v, output, lse, table, scale, start, stop, real, offsets,
    queries, keys, entries, middle, seed, tiles,
    q_batch, q_row, k_batch, k_row, v_batch, v_row,
    scale_batch, scale_row, range_batch, real_batch, real_row, offset_batch,
    ACTIVATION: tl.constexpr, SHIFT: tl.constexpr, BIASED: tl.constexpr, PADDED: tl.constexpr, SHIFTED: tl.constexpr,
    DROPPED: tl.constexpr, PRECISION: tl.constexpr, Z: tl.constexpr, H: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """A tile of queries over all keys that it may see, for a block of values.

    Softmax keeps a running maximum and sum, and writes log2 of the sum of 2^t; the other activations need neither.
    """
    batch, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    row_of_batch = batch.to(tl.int64)
    rows = tile * QUERIES + tl.arange(0, QUERIES)
    far_rows = rows.to(tl.int64)
    inside = rows < queries
    features = tl.arange(0, WIDTH)
    values = tl.program_id(1) * VALUES + tl.arange(0, VALUES)

    first = tl.load(start + row_of_batch * range_batch + rows, mask=inside, other=0)
    last = tl.minimum(tl.load(stop + row_of_batch * range_batch + rows, mask=inside, other=0), keys)
    low = tl.min(tl.where(first < last, first, keys)) // KEYS * KEYS
    high = tl.max(tl.where(first < last, last, 0))
    factor = tl.load(scale + row_of_batch * scale_batch + far_rows * scale_row, mask=inside, other=0.0)
    if SHIFTED:
        middle -= tl.load(offsets + row_of_batch * offset_batch).to(tl.int32)
    query = tl.load(
        q + row_of_batch * q_batch + far_rows[:, None] * q_row + features[None, :],
        mask=inside[:, None] & (features < Z)[None, :],
        other=0.0,
    )
    k += row_of_batch * k_batch
    v += row_of_batch * v_batch

    result = tl.zeros((QUERIES, VALUES), tl.float32)
    greatest = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    if DROPPED:
        word, other_word = keys_of_dropout(seed, batch, rows)
    for begin in range(low, high, KEYS):
        columns = begin + tl.arange(0, KEYS)
        far_columns = columns.to(tl.int64)
        key = tl.load(
            k + far_columns[None, :] * k_row + features[:, None],
            mask=(columns < keys)[None, :] & (features < Z)[:, None],
            other=0.0,
        )
        products = added(tl.zeros((QUERIES, KEYS), tl.float32), query, key, PRECISION)
        t = biased(products, factor, table, rows, columns, entries, middle, SHIFT, BIASED)
        visible = seen(first, last, columns, real, row_of_batch * real_batch, real_row, keys, PADDED)
        if ACTIVATION == "softmax":
            t = tl.where(visible, t, float("-inf"))
            new = tl.maximum(greatest, tl.max(t, 1))
            reference = tl.where(new == float("-inf"), 0.0, new)
            weights = tl.exp2(t - reference[:, None])
            shrink = tl.exp2(greatest - reference)
            total = total * shrink + tl.sum(weights, 1)
            result *= shrink[:, None]
            greatest = new
        else:
            weights = tl.where(visible, activated(t, ACTIVATION), 0.0)
        if DROPPED:
            weights = tl.where(kept(word, other_word, columns, DROPPED), weights, 0.0)
        value = tl.load(
            v + far_columns[:, None] * v_row + values[None, :],
            mask=(columns < keys)[:, None] & (values < H)[None, :],
            other=0.0,
        )
        result = added(result, weights.to(value.dtype), value, PRECISION)

    if ACTIVATION == "softmax":
        sum_of_weights = tl.where(total > 0.0, total, 1.0)
        result /= sum_of_weights[:, None]
        if tl.program_id(1) == 0:
            # of a query that sees nothing: weights 2^(t - inf) = 0
            spread = tl.where(total > 0.0, greatest + tl.log2(sum_of_weights), float("inf"))
            tl.store(lse + row_of_batch * queries + rows, spread, mask=inside)
    if DROPPED:
        result *= 65536.0 / (65536 - DROPPED)
    tl.store(
        output + (row_of_batch * queries + far_rows)[:, None] * H + values[None, :],
        result.to(output.dtype.element_ty),
        mask=inside[:, None] & (values < H)[None, :],
    )


@triton.jit(do_not_specialize=VARYING + PLACES)
def gradients_kernel(
    q, k, v, doutput, weights, dscores, lse, delta, table, scale, start, stop, real, offsets, bounds,
    queries, keys, entries, middle, seed, batch_start, query_start, key_start, tiles, key_tiles,
    q_batch, q_row, k_batch, k_row, v_batch, v_row, doutput_batch, doutput_row,
    scale_batch, scale_row, range_batch, real_batch, real_row, offset_batch, bounds_batch,
    ACTIVATION: tl.constexpr, SHIFT: tl.constexpr, BIASED: tl.constexpr, PADDED: tl.constexpr, SHIFTED: tl.constexpr,
    DROPPED: tl.constexpr, PRECISION: tl.constexpr, Z: tl.constexpr, H: tl.constexpr,
    TILE: tl.constexpr, STEP: tl.constexpr, VSTEP: tl.constexpr,
):  # fmt: skip
    """The weights of a tile of queries and keys, dropout applied, and the gradient of its t, into slabs."""
    program, key_tile = tl.program_id(0) // key_tiles, tl.program_id(0) % key_tiles
    local, tile = program // tiles, program % tiles
    batch = batch_start + local
    row_of_batch = batch.to(tl.int64)
    bound = bounds + row_of_batch * bounds_batch + 2 * (query_start // TILE + tile)
    number = key_start // TILE + key_tile
    if (number < tl.load(bound)) | (number >= tl.load(bound + 1)):
        return  # nobody reads these
    rows = query_start + tile * TILE + tl.arange(0, TILE)
    columns = key_start + key_tile * TILE + tl.arange(0, TILE)
    inside, there = rows < queries, columns < keys
    far_rows, far_columns = rows.to(tl.int64), columns.to(tl.int64)

    q_rows = q + row_of_batch * q_batch + far_rows * q_row
    k_rows = k + row_of_batch * k_batch + far_columns * k_row
    products = tl.zeros((TILE, TILE), tl.float32)
    for feature in range(0, Z, STEP):
        features = feature + tl.arange(0, STEP)
        here = (features < Z)[None, :]
        query = tl.load(q_rows[:, None] + features[None, :], mask=inside[:, None] & here, other=0.0)
        key = tl.load(k_rows[:, None] + features[None, :], mask=there[:, None] & here, other=0.0)
        products = added(products, query, tl.trans(key), PRECISION)

    if SHIFTED:
        middle -= tl.load(offsets + row_of_batch * offset_batch).to(tl.int32)
    factor = tl.load(scale + row_of_batch * scale_batch + far_rows * scale_row, mask=inside, other=0.0)
    t = biased(products, factor, table, rows, columns, entries, middle, SHIFT, BIASED)
    first = tl.load(start + row_of_batch * range_batch + rows, mask=inside, other=0)
    last = tl.minimum(tl.load(stop + row_of_batch * range_batch + rows, mask=inside, other=0), keys)
    visible = seen(first, last, columns, real, row_of_batch * real_batch, real_row, keys, PADDED)
    if ACTIVATION == "softmax":
        spread = tl.load(lse + row_of_batch * queries + rows, mask=inside, other=float("inf"))
        used = tl.exp2(tl.where(visible, t, float("-inf")) - spread[:, None])
        gain = used
    else:
        used = tl.where(visible, activated(t, ACTIVATION), 0.0)
        gain = tl.where(visible, derivative(t, ACTIVATION), 0.0)
    if DROPPED:
        share = 65536.0 / (65536 - DROPPED)
        word, other_word = keys_of_dropout(seed, batch, rows)
        keep = kept(word, other_word, columns, DROPPED)
        # all that is held during the second product: of softmax, the sign tells which weights were dropped
        gain = tl.where(keep, gain * share, -gain * share if ACTIVATION == "softmax" else 0.0)
        used = tl.where(keep, used * share, 0.0)
    width = key_tiles * TILE
    slab_rows = (local.to(tl.int64) * tiles + tile) * TILE + tl.arange(0, TILE)
    places = slab_rows[:, None] * width + (key_tile * TILE + tl.arange(0, TILE))[None, :]
    tl.store(weights + places, used.to(weights.dtype.element_ty))

    v_rows = v + row_of_batch * v_batch + far_columns * v_row
    doutput_rows = doutput + row_of_batch * doutput_batch + far_rows * doutput_row
    dweights = tl.zeros((TILE, TILE), tl.float32)
    for feature in range(0, H, VSTEP):
        features = feature + tl.arange(0, VSTEP)
        here = (features < H)[None, :]
        grad = tl.load(doutput_rows[:, None] + features[None, :], mask=inside[:, None] & here, other=0.0)
        value = tl.load(v_rows[:, None] + features[None, :], mask=there[:, None] & here, other=0.0)
        dweights = added(dweights, grad, tl.trans(value), PRECISION)
    if ACTIVATION == "softmax":
        inner = tl.load(delta + row_of_batch * queries + rows, mask=inside, other=0.0)[:, None]
        if DROPPED:
            grad_t = tl.where(gain > 0.0, gain * dweights, 0.0) - tl.abs(gain) * (inner / share)
        else:
            grad_t = gain * (dweights - inner)
        grad_t *= LN2
    else:
        grad_t = gain * dweights
    tl.store(dscores + places, grad_t.to(dscores.dtype.element_ty))


@triton.jit(do_not_specialize=["rows", "terms", "batch_start", "row_start", "term_start", "row_tiles", "term_tiles"])
def product_kernel(
    slab, x, target, bounds, rows, terms, batch_start, row_start, term_start, row_tiles, term_tiles,
    x_batch, x_row, bounds_batch,
    TRANSPOSED: tl.constexpr, PRECISION: tl.constexpr, N: tl.constexpr,
    TILE: tl.constexpr, STEP: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """target (B, rows, N) += slab @ x, or its transpose @ x, over the tiles that hold anything."""
    local, tile = tl.program_id(0) // row_tiles, tl.program_id(0) % row_tiles
    row_of_batch = (batch_start + local).to(tl.int64)
    features = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    bound = bounds + row_of_batch * bounds_batch + 2 * (row_start // TILE + tile)
    first = tl.maximum(tl.load(bound) - term_start // TILE, 0)
    last = tl.minimum(tl.load(bound + 1) - term_start // TILE, term_tiles)
    if first >= last:
        return
    width = (row_tiles if TRANSPOSED else term_tiles) * TILE
    slab += local.to(tl.int64) * row_tiles * term_tiles * TILE * TILE
    x += row_of_batch * x_batch
    within = tile * TILE + tl.arange(0, TILE)
    result = tl.zeros((TILE, COLUMNS), tl.float32)
    for begin in range(first * TILE, last * TILE, STEP):
        steps = begin + tl.arange(0, STEP)
        if TRANSPOSED:
            part = tl.trans(tl.load(slab + steps.to(tl.int64)[:, None] * width + within[None, :]))
        else:
            part = tl.load(slab + within.to(tl.int64)[:, None] * width + steps[None, :])
        places = (term_start + steps).to(tl.int64)
        mask = (places < terms)[:, None] & (features < N)[None, :]
        given = tl.load(x + places[:, None] * x_row + features[None, :], mask=mask, other=0.0)
        result = added(result, part, given, PRECISION)
    place = row_start + within
    target += (row_of_batch * rows + place)[:, None] * N + features[None, :]
    mask = (place < rows)[:, None] & (features < N)[None, :]
    tl.store(target, tl.load(target, mask=mask, other=0.0) + result, mask=mask)


@triton.jit(do_not_specialize=["queries", "keys", "tiles", *PLACES])
def diagonals_kernel(
    slab, target, bounds, queries, keys, batch_start, query_start, key_start, tiles, key_tiles, bounds_batch,
    TILE: tl.constexpr, STEP: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """target[b, key - query + queries - 1] += slab, (B, queries + keys - 1) float32: the sums along diagonals."""
    height, width = tiles * TILE, key_tiles * TILE
    blocks = tl.cdiv(height + width - 1, COLUMNS)
    local, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    row_of_batch = (batch_start + local).to(tl.int64)
    bounds += row_of_batch * bounds_batch + 2 * (query_start // TILE)
    slab += local.to(tl.int64) * height * width
    least = block * COLUMNS - (height - 1)  # of this block's distances between columns and rows of the slab
    distances = least + tl.arange(0, COLUMNS)
    first = tl.maximum(-(least + COLUMNS - 1), 0) // STEP * STEP
    last = tl.minimum(width - least, height)
    result = tl.zeros((COLUMNS,), tl.float32)
    for begin in range(first, last, STEP):
        low = tl.load(bounds + 2 * (begin // TILE)) * TILE - key_start
        high = tl.load(bounds + 2 * (begin // TILE) + 1) * TILE - key_start
        rows = begin + tl.arange(0, STEP)
        columns = rows[:, None] + distances[None, :]
        mask = (columns >= tl.maximum(low, 0)) & (columns < tl.minimum(high, width))
        part = tl.load(slab + rows.to(tl.int64)[:, None] * width + columns, mask=mask, other=0.0)
        result += tl.sum(part.to(tl.float32), 0)
    place = distances + key_start - query_start + queries - 1
    mask = (place >= 0) & (place < queries + keys - 1)
    target += row_of_batch * (queries + keys - 1) + place
    tl.store(target, tl.load(target, mask=mask, other=0.0) + result, mask=mask)


@triton.jit
def mask_kernel(mask, seed, queries, keys, DROPPED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The dropout mask (B, queries, keys) of the other kernels, for tests."""
    batch, rows = tl.program_id(0), tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    word, other_word = keys_of_dropout(seed, batch, rows)
    places = (batch * queries + rows)[:, None] * keys + columns[None, :]
    inside = (rows < queries)[:, None] & (columns < keys)[None, :]
    tl.store(mask + places, kept(word, other_word, columns, DROPPED), mask=inside)
