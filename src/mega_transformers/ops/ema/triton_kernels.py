"""The EMA's kernels in Triton: a lane holds the states of a channel in registers and walks over a chunk of time.

States of a chunk are (states, channels) with channels across the lanes of a warp, so that the sum over states stays in
a lane; with more than 16 states several lanes share a channel. All is computed in float32, without matrix units.

A walk goes over a chunk from its first token to its last, or back if REVERSED. The transpose of the EMA is the EMA
with its directions exchanged (ADJOINT), and `drive` and `output` too. UNIT says that `drive` is 1, which saves a
product a state: without states from outside only drive * output matters, so it may be all in `output`.
"""

from __future__ import annotations

try:  # in a try, since transformers wants what code beside a model imports, unless it is there
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("Triton's kernels need Triton: pip install 'mega-transformers[gpu]'") from error

VARYING = ["channels", "length", "chunks", "items", "total", "batch", "size", "starts_batch"]
# were these known to be aligned, Triton would load four channels to a lane at a time, and spread states over the lanes
TILES = ["left", "entering", "states", "decay", "drive", "output", "sums"]


@triton.jit
def _place(index, SIZE: tl.constexpr):
    """Where this program's tile of states begins in (..., blocks, STATES, CHANNELS)."""
    return (index * tl.num_programs(0) + tl.program_id(0)) * SIZE


@triton.jit
def _rows(source, t, stride, inside, COUNT: tl.constexpr, REVERSED: tl.constexpr):
    """`COUNT` tokens' rows from t on in float32, all requested before the first is needed."""
    rows = ()
    for i in tl.static_range(COUNT):
        row = tl.load(source + (t - i if REVERSED else t + i) * stride, mask=inside, other=0.0)
        rows = rows + (row.to(tl.float32),)  # type: ignore[assignment]  # noqa: RUF005
    return rows


@triton.jit
def _continued(state, starts, t, REVERSED: tl.constexpr):
    """The state that reaches token t: none if a document starts there, or for a walk back at the token behind it."""
    return tl.where(tl.load(starts + t + (1 if REVERSED else 0)) != 0, 0.0, state)


@triton.jit
def _advance(
    state, decay, drive, x, x_time, starts, t, inside,
    COUNT: tl.constexpr, REVERSED: tl.constexpr, UNIT: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """The state `COUNT` tokens later."""
    rows = _rows(x, t, x_time, inside, COUNT, REVERSED)
    for i in tl.static_range(COUNT):
        if PACKED:
            state = _continued(state, starts, t - i if REVERSED else t + i, REVERSED)
        state = decay * state + (rows[i][None, :] if UNIT else drive * rows[i][None, :])
    return state


@triton.jit
def _write(
    state, decay, drive, output, x, x_time, y, y_time, before, starts, t, inside,
    COUNT: tl.constexpr, REVERSED: tl.constexpr, UNIT: tl.constexpr, PACKED: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """As `_advance`, and writes outputs, added to what `before` holds of the other direction."""
    rows = _rows(x, t, x_time, inside, COUNT, REVERSED)
    if before is not None:
        others = _rows(before, t, CHANNELS, inside, COUNT, REVERSED)
    for i in tl.static_range(COUNT):
        at = t - i if REVERSED else t + i
        if PACKED:
            state = _continued(state, starts, at, REVERSED)
        state = decay * state + (rows[i][None, :] if UNIT else drive * rows[i][None, :])
        row = tl.sum(output * state, axis=0)
        if before is not None:
            row += others[i]
        tl.store(y + at * y_time, row.to(y.dtype.element_ty), mask=inside)
    return state


@triton.jit
def _differentiate(
    state, by_decay, by_drive, doutput, ddecay, ddrive, decay, drive, output, x, x_time, dy, dy_time, starts, t,
    inside,
    COUNT: tl.constexpr, REVERSED: tl.constexpr, UNIT: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """As `_advance`, with the state's derivatives by decay and drive, and sums for the coefficients' gradients."""
    rows = _rows(x, t, x_time, inside, COUNT, REVERSED)
    grads = _rows(dy, t, dy_time, inside, COUNT, REVERSED)
    for i in tl.static_range(COUNT):
        if PACKED:
            at = t - i if REVERSED else t + i
            state, by_decay = _continued(state, starts, at, REVERSED), _continued(by_decay, starts, at, REVERSED)
        by_decay = decay * by_decay + state
        state = decay * state + (rows[i][None, :] if UNIT else drive * rows[i][None, :])
        pull = grads[i][None, :] if UNIT else output * grads[i][None, :]
        doutput += grads[i][None, :] * state
        ddecay += pull * by_decay
        if not UNIT:
            by_drive = decay * by_drive + rows[i][None, :]
            ddrive += pull * by_drive
    return state, by_decay, by_drive, doutput, ddecay, ddrive


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=TILES)
def states_kernel(
    x, left, decay, drive, starts, length, channels, chunks, items, x_batch, x_time, x_channel, starts_batch,
    STATES: tl.constexpr, CHANNELS: tl.constexpr, TOKENS: tl.constexpr, COUNT: tl.constexpr,
    DIRECTIONS: tl.constexpr, ADJOINT: tl.constexpr, UNIT: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """The states that chunks leave where none enter them: `left` (chunks, B, directions, blocks, STATES, CHANNELS)."""
    lane = tl.arange(0, CHANNELS)
    channel = tl.program_id(0) * CHANNELS + lane
    inside = channel < channels
    tile = tl.arange(0, STATES)[:, None] * CHANNELS + lane[None, :]
    for item in range(tl.program_id(1), items, tl.num_programs(1)):
        row, chunk = (item // chunks).to(tl.int64), (item % chunks).to(tl.int64)
        first = chunk * TOKENS
        count = tl.minimum(length - first, TOKENS).to(tl.int32)
        whole = count // COUNT * COUNT
        tokens = x + row * x_batch + channel.to(tl.int64) * x_channel
        documents = starts + row * starts_batch if PACKED else None
        for direction in tl.static_range(DIRECTIONS):
            REVERSED = (direction == 1) != ADJOINT
            coefficients = _place(direction, STATES * CHANNELS)
            r = tl.load(decay + coefficients + tile)
            b = None if UNIT else tl.load(drive + coefficients + tile)
            state = tl.zeros((STATES, CHANNELS), tl.float32)
            for rest in tl.static_range(2):  # `COUNT` tokens at a time, and the others one by one
                for j in range(whole if rest else 0, count if rest else whole, 1 if rest else COUNT):
                    state = _advance(
                        state, r, b, tokens, x_time, documents, first + (count - 1 - j if REVERSED else j), inside,
                        1 if rest else COUNT, REVERSED, UNIT, PACKED,
                    )  # fmt: skip
            slot = _place((chunk * (items // chunks) + row) * DIRECTIONS + direction, STATES * CHANNELS)
            tl.store(left + slot + tile, state)


@triton.jit
def _carry(
    state, left, log_decay, through, inside, k, length, chunks, total, backward,
    COUNT: tl.constexpr, TOKENS: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """The state behind `COUNT` chunks, from the k-th of the walk on; before each it is written in place of `left`."""
    added = ()
    for i in tl.static_range(COUNT):
        chunk = tl.where(backward, chunks - 1 - (k + i), k + i).to(tl.int64)
        entry = tl.load(left + chunk * total, mask=inside, other=0.0)
        added = added + (entry,)  # type: ignore[assignment]  # noqa: RUF005
    for i in tl.static_range(COUNT):
        chunk = tl.where(backward, chunks - 1 - (k + i), k + i).to(tl.int64)
        tl.store(left + chunk * total, state, mask=inside)
        factor = tl.exp(log_decay * tl.minimum(length - chunk * TOKENS, TOKENS).to(tl.float32))
        if PACKED:
            factor = tl.where(tl.load(through + chunk) != 0, factor, 0.0)
        state = factor * state + added[i]
    return state


@triton.jit(do_not_specialize=VARYING)
def carry_kernel(
    left, log_decay, through, initial, last, length, chunks, total, batch, size,
    BLOCK: tl.constexpr, TOKENS: tl.constexpr, COUNT: tl.constexpr, DIRECTIONS: tl.constexpr, ADJOINT: tl.constexpr,
    PACKED: tl.constexpr, STATEFUL: tl.constexpr,
):  # fmt: skip
    """From the states that chunks leave, `left` (chunks, B, directions, size), to those that enter them, in place.

    `through` (2, B, chunks) says whether states pass through a chunk in a walk forward and in one back.
    """
    parts = tl.cdiv(size, BLOCK)
    slot = (tl.program_id(0) // parts).to(tl.int64)
    row, direction = slot // DIRECTIONS, slot % DIRECTIONS
    backward = (direction == 1) != ADJOINT
    within = (tl.program_id(0) % parts) * BLOCK + tl.arange(0, BLOCK)
    inside = within < size
    place = slot * size + within
    rate = tl.load(log_decay + direction * size + within, mask=inside, other=0.0)
    passes = through + (tl.where(backward, batch, 0) + row) * chunks if PACKED else None
    state = tl.zeros((BLOCK,), tl.float32)
    if STATEFUL:
        state = tl.load(initial + place, mask=inside, other=0.0)
    whole = chunks // COUNT * COUNT
    for rest in tl.static_range(2):
        for k in range(whole if rest else 0, chunks if rest else whole, 1 if rest else COUNT):
            state = _carry(
                state, left + place, rate, passes, inside, k, length, chunks, total, backward,
                1 if rest else COUNT, TOKENS, PACKED,
            )  # fmt: skip
    if STATEFUL:
        tl.store(last + place, state, mask=inside)


@triton.jit
def _gradients(
    doutput, ddecay, ddrive, x, x_time, dy, dy_time, decay, drive, output, states, adjoints, starts, first,
    count, inside,
    REVERSED: tl.constexpr, COUNT: tl.constexpr, UNIT: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Adds a chunk's part to the gradients of a direction's coefficients.

    The chunk's outputs and the state it leaves are functions of the coefficients and of the state that enters; what
    the latter's own gradient is belongs to the chunks before.
    """
    state = tl.load(states)
    by_decay = tl.zeros_like(state)
    by_drive = tl.zeros_like(state)
    whole = count // COUNT * COUNT
    for rest in tl.static_range(2):
        for j in range(whole if rest else 0, count if rest else whole, 1 if rest else COUNT):
            state, by_decay, by_drive, doutput, ddecay, ddrive = _differentiate(
                state, by_decay, by_drive, doutput, ddecay, ddrive, decay, drive, output, x, x_time, dy, dy_time,
                starts, first + (count - 1 - j if REVERSED else j), inside,
                1 if rest else COUNT, REVERSED, UNIT, PACKED,
            )  # fmt: skip
    adjoint = tl.load(adjoints)
    if PACKED:  # it comes from the other side
        adjoint = _continued(adjoint, starts, first if REVERSED else first + count - 1, not REVERSED)
    adjoint *= decay  # from the token behind the chunk to its last
    ddecay += adjoint * by_decay
    if not UNIT:
        ddrive += adjoint * by_drive
    return doutput, ddecay, ddrive


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=TILES)
def outputs_kernel(
    x, y, entering, decay, drive, output, starts, scratch, inputs, states, sums, length, channels, chunks, items,
    x_batch, x_time, x_channel, inputs_batch, inputs_time, inputs_channel, starts_batch,
    STATES: tl.constexpr, CHANNELS: tl.constexpr, TOKENS: tl.constexpr, COUNT: tl.constexpr,
    DIRECTIONS: tl.constexpr, ADJOINT: tl.constexpr, UNIT: tl.constexpr, PACKED: tl.constexpr,
    GRADIENTS: tl.constexpr,
):  # fmt: skip
    """Outputs y (B, L, channels) from the states that enter each chunk.

    With GRADIENTS x is the gradient of the outputs, ADJOINT, and y that of `inputs`; `states` are those that entered
    the chunks in the forward pass, and `sums` (2 or 3, programs, directions, blocks, STATES, CHANNELS) gets what the
    coefficients' gradients are sums of: a program goes over chunks of its channels, in the same order in every run.
    """
    lane = tl.arange(0, CHANNELS)
    channel = tl.program_id(0) * CHANNELS + lane
    inside = channel < channels
    tile = tl.arange(0, STATES)[:, None] * CHANNELS + lane[None, :]
    # what one direction adds lives here until the other adds its own: no longer than a chunk, so in a GPU's cache
    program = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    zero = tl.zeros((STATES, CHANNELS), tl.float32)
    doutput, ddecay, ddrive, doutput_back, ddecay_back = zero, zero, zero, zero, zero
    for item in range(tl.program_id(1), items, tl.num_programs(1)):
        row, chunk = (item // chunks).to(tl.int64), (item % chunks).to(tl.int64)
        first = chunk * TOKENS
        count = tl.minimum(length - first, TOKENS).to(tl.int32)
        whole = count // COUNT * COUNT
        tokens = x + row * x_batch + channel.to(tl.int64) * x_channel
        results = y + row * length * channels + channel
        between = scratch + (program * TOKENS - first) * CHANNELS + lane if DIRECTIONS == 2 else None
        documents = starts + row * starts_batch if PACKED else None
        for direction in tl.static_range(DIRECTIONS):
            REVERSED = (direction == 1) != ADJOINT
            coefficients = _place(direction, STATES * CHANNELS)
            r = tl.load(decay + coefficients + tile)
            b = None if UNIT else tl.load(drive + coefficients + tile)
            g = tl.load(output + coefficients + tile)
            slot = _place((chunk * (items // chunks) + row) * DIRECTIONS + direction, STATES * CHANNELS) + tile
            state = tl.load(entering + slot)
            target = between if direction + 1 < DIRECTIONS else results
            stride = CHANNELS if direction + 1 < DIRECTIONS else channels
            before = between if direction == 1 else None
            for rest in tl.static_range(2):
                for j in range(whole if rest else 0, count if rest else whole, 1 if rest else COUNT):
                    state = _write(
                        state, r, b, g, tokens, x_time, target, stride, before, documents,
                        first + (count - 1 - j if REVERSED else j), inside,
                        1 if rest else COUNT, REVERSED, UNIT, PACKED, CHANNELS,
                    )  # fmt: skip
            if DIRECTIONS == 2:
                tl.debug_barrier()  # lanes that share a channel read what one of them wrote
            if GRADIENTS:
                given = inputs + row * inputs_batch + channel.to(tl.int64) * inputs_channel
                if direction == 0:
                    doutput, ddecay, ddrive = _gradients(
                        doutput, ddecay, ddrive, given, inputs_time, tokens, x_time, r, g, b, states + slot,
                        entering + slot, documents, first, count, inside, False, COUNT, UNIT, PACKED,
                    )  # fmt: skip
                else:
                    doutput_back, ddecay_back, _ = _gradients(
                        doutput_back, ddecay_back, zero, given, inputs_time, tokens, x_time, r, g, b, states + slot,
                        entering + slot, documents, first, count, inside, True, COUNT, UNIT, PACKED,
                    )  # fmt: skip
    if GRADIENTS:
        mine = sums + _place(tl.program_id(1) * DIRECTIONS, STATES * CHANNELS) + tile
        every = tl.num_programs(1) * DIRECTIONS * tl.num_programs(0) * STATES * CHANNELS
        tl.store(mine, doutput)
        tl.store(mine + every, ddecay)
        if not UNIT:
            tl.store(mine + 2 * every, ddrive)
        if DIRECTIONS == 2:
            back = sums + _place(tl.program_id(1) * DIRECTIONS + 1, STATES * CHANNELS) + tile
            tl.store(back, doutput_back)
            tl.store(back + every, ddecay_back)
