"""The registry of what is measured. Pure data: nothing here imports torch, so workers of any environment can read it.

What is for a GPU is in gpu_cases.py. Here every model is in float32. Language models have width 256 and 4 layers
(h = ffn = 512, z 64, N 16, vocabulary 8192): masked for training and inference, causal for generation. Mega has rotary
bias and the default norm, all else is in each case's workloads. Text-to-text models are those of
recipes/g2p-cmudict.yaml.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

OURS = "mega"
TRITON = "mega-triton"
OLD = "transformers-4.40.2"
MODERNBERT = "modernbert"
ROBERTA = "roberta"
MODERNBERT_FLASH = "modernbert-flash"
GPT2 = "gpt2"
MAMBA2 = "mamba2"
GLA = "gla"
MARIAN = "marian"
ONE_BY_ONE = "one-by-one"
UNCOMPILED = "uncompiled"
MATMULS = "matmuls"
BEFORE = "before"

QUICK_DIVISOR = 16


@dataclass(frozen=True)
class Workload:
    """One thing a worker can do repeatedly.

    Args:
        task: `"train"` (forward, loss, backward, AdamW step, gradients freed) or `"infer"` of a model; of a causal one
            `"prefill"` (a prompt read at once), `"decode"` (steps of one token behind a cached context) or
            `"generate"` (prompts, or sources, of unequal lengths); or forward and backward of one op: `"ema-layer"`
            (the module), `"ema-op"` or `"attention-op"` (our back ends). On a GPU also `"ema-forward"` and
            `"attention-forward"`.
        length: Tokens in a row of the batch; of `"decode"` those in the cache before, of `"generate"` the longest
            prompt's.
        chunk: Tokens per chunk of attention; None is full attention. Only Mega has chunks.
        attention: Attention activation of Mega.
        head: `"masked-lm"` (dense logits unless `sparse`), `"causal-lm"`, `"text-to-text"` or `"encoder"` (hidden
            states).
        dropout: Probability given to each of the model's own dropouts. Training is in train mode even with 0.
        labelled: Share of the positions that have a label; the rest is -100.
        sparse: Whether logits are computed at labelled positions only.
        backend: Which implementation of an op.
        batch: Rows; on a CPU more than one for `"generate"` only.
        beams: Beams of `"generate"`; one is greedy search.
        new_tokens: Tokens that `"decode"` and `"generate"` add to each row.
        all_logits: Whether ours, too, gives the logits of every token in `"prefill"`, not those of the last alone.
        old_way: How 4.40.2 reads the prompt of `"prefill"`: in a `"training"` forward pass (with a graph), in
            `"inference"` without a cache, or `"cached"`, filling one.
        compiled: Whether the steps of `"decode"` are compiled (`torch.compile`, a static cache); not `UNCOMPILED`'s.
        device: `"cpu"` or `"cuda"`.
        dtype: Of weights and activations.
        width, layers: Of models.
    """

    task: str
    length: int
    chunk: int | None = None
    attention: str = "softmax"
    head: str = "masked-lm"
    dropout: float = 0.0
    labelled: float = 0.15
    sparse: bool = False
    backend: str | None = None
    batch: int = 1
    new_tokens: int = 0
    beams: int = 1
    all_logits: bool = False
    old_way: str = "training"
    compiled: bool = False
    device: str = "cpu"
    dtype: str = "float32"
    width: int = 256
    layers: int = 4

    @property
    def hidden(self) -> int:
        """Mega's h, and the width of its feed-forward."""
        return 2 * self.width

    @property
    def shared(self) -> int:
        """Mega's z; flash kernels take up to 2 * 128."""
        return min(self.width // 4, 128)

    @property
    def heads(self) -> int:
        """Heads of models that have several, of 64 features each."""
        return max(1, self.width // 64)

    def scaled(self, divisor: int) -> Workload:
        """The same workload with length and chunk divided by `divisor`."""
        chunk = None if self.chunk is None else max(1, self.chunk // divisor)
        return replace(self, length=max(1, self.length // divisor), chunk=chunk)

    def to_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Subject:
    """A workload in the hands of a peer: what one worker process measures."""

    key: str
    peer: str
    workload: Workload


@dataclass(frozen=True)
class Target:
    """What a comparison should reach: speed-up at least `speed`, share of the peer's memory at most `memory`."""

    speed: float | None = None
    memory: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Ours against peers on one workload, all measured in turns."""

    name: str
    title: str
    workload: Workload
    against: dict[str, Target]

    @property
    def groups(self) -> list[list[Subject]]:
        """Subjects that are measured in turns: here one group."""
        return [[Subject(peer, peer, self.workload) for peer in (OURS, *self.against)]]

    def changed(self, change: Callable[[Workload], Workload]) -> Comparison:
        """The same case with another workload."""
        return replace(self, workload=change(self.workload))

    def scaled(self, divisor: int) -> Comparison:
        """The same case with shorter inputs."""
        return self.changed(lambda workload: workload.scaled(divisor))


@dataclass(frozen=True)
class Series:
    """Ours over lengths, as one or several curves.

    Args:
        curves: For each curve its workloads in order of length.
        growth: Most by which time and memory may grow from a curve's first point to its last; None asks nothing.
        memory_growth: The same for memory alone, where it is another number.
        in_turns: `"all"` measures every point in turns; `"length"` only those of one length, with fewer processes.
        memory_repeats: Most processes that a point is measured in.
    """

    name: str
    title: str
    curves: dict[str, tuple[Workload, ...]]
    growth: float | None = None
    memory_growth: float | None = None
    in_turns: str = "length"
    memory_repeats: int = 1

    @property
    def groups(self) -> list[list[Subject]]:
        """Subjects that are measured in turns."""
        subjects = [
            Subject(f"{curve}@{workload.length}", TRITON if workload.backend == "triton" else OURS, workload)
            for curve, workloads in self.curves.items()
            for workload in workloads
        ]
        if self.in_turns == "all":
            return [subjects]
        lengths = sorted({subject.workload.length for subject in subjects})
        return [[subject for subject in subjects if subject.workload.length == length] for length in lengths]

    def changed(self, change: Callable[[Workload], Workload]) -> Series:
        """The same case with other workloads."""
        return replace(self, curves={k: tuple(map(change, v)) for k, v in self.curves.items()})

    def scaled(self, divisor: int) -> Series:
        """The same case with shorter inputs."""
        return self.changed(lambda workload: workload.scaled(divisor))


Case = Comparison | Series

FULL_2048 = Workload("train", 2048)
CHUNKED_8192 = Workload("train", 8192, chunk=512)
LAPLACE_8192 = Workload("infer", 8192, attention="laplace")
DECODE = Workload("decode", 0, head="causal-lm", new_tokens=16)
TEXT_TO_TEXT = Workload("generate", 12, head="text-to-text", batch=16, new_tokens=8, beams=5)
PREFILL = Workload("prefill", 8192, chunk=512, head="causal-lm")
# The same place inside a chunk at every context, so that every point sees as many keys.
CONTEXTS = tuple(thousands * 1024 + 255 for thousands in (1, 4, 16, 64, 256))


def lengths(workload: Workload, first: int, last: int) -> tuple[Workload, ...]:
    """The workload at `first`, twice that, and so on to `last` tokens."""
    doublings = (last // first).bit_length()
    return tuple(replace(workload, length=first << i) for i in range(doublings))


def _attention(activation: str, backend: str) -> Workload:
    return Workload("attention-op", 0, attention=activation, backend=backend)


_ALL: tuple[Case, ...] = (
    Comparison(
        "train-2048-full",
        "training step, 2048 tokens, softmax, full attention, 15% labels, no dropout",
        FULL_2048,
        {OLD: Target(2.5, 0.4)},
    ),
    Comparison(
        "train-2048-full-dropout",
        "training step, 2048 tokens, softmax, full attention, 15% labels, each model's dropouts at 0.1",
        replace(FULL_2048, dropout=0.1),
        {OLD: Target(), MATMULS: Target()},
    ),
    Comparison(
        "train-2048-full-all-labels",
        "training step, 2048 tokens, softmax, full attention, a label at every position, no dropout",
        replace(FULL_2048, labelled=1.0),
        {OLD: Target()},
    ),
    Comparison(
        "train-8192-chunk512",
        "training step, 8192 tokens, softmax, Mega in chunks of 512, 15% labels, no dropout",
        CHUNKED_8192,
        {OLD: Target(4.0, 0.35), MODERNBERT: Target(3.5, 0.8), ROBERTA: Target()},
    ),
    Comparison(
        "train-8192-chunk512-dropout",
        "training step, 8192 tokens, softmax, Mega in chunks of 512, 15% labels, each model's dropouts at 0.1",
        replace(CHUNKED_8192, dropout=0.1),
        {OLD: Target(), MODERNBERT: Target()},
    ),
    Comparison(
        "train-8192-chunk512-all-labels",
        "training step, 8192 tokens, softmax, Mega in chunks of 512, a label at every position, no dropout",
        replace(CHUNKED_8192, labelled=1.0),
        {OLD: Target(), MODERNBERT: Target()},
    ),
    Comparison(
        "train-8192-chunk512-sparse",
        "training step, 8192 tokens, softmax, Mega in chunks of 512, 15% labels, no dropout, both with "
        "sparse_prediction=True (logits at labels only)",
        replace(CHUNKED_8192, sparse=True),
        {MODERNBERT: Target()},
    ),
    Comparison(
        "infer-8192-laplace-full",
        "inference, 8192 tokens, laplace, full attention, masked LM with logits everywhere",
        LAPLACE_8192,
        {OLD: Target(3.0, 0.3)},
    ),
    Comparison(
        "infer-8192-laplace-full-encoder",
        "inference, 8192 tokens, laplace, full attention, encoder without the vocabulary's projection",
        replace(LAPLACE_8192, head="encoder"),
        {OLD: Target()},
    ),
    Comparison(
        "ema-op",
        "EMA layer alone, forward and backward, 512 channels x 2 directions, N 16, 4096 tokens",
        Workload("ema-layer", 4096),
        {OLD: Target(20.0, 0.2)},
    ),
    Series(
        "infer-scaling",
        "inference of the encoder, softmax, chunks of 512, 4k to 64k tokens",
        {"encoder": lengths(Workload("infer", 0, chunk=512, head="encoder"), 4096, 65536)},
        growth=17.0,
        in_turns="all",
        memory_repeats=3,
    ),
    Comparison(
        "decode-2048-full",
        "a decoding step behind 2048 tokens, softmax, full attention, batch 1",
        replace(DECODE, length=2048),
        {OLD: Target(20.0), GPT2: Target()},
    ),
    Comparison(
        "decode-512-full",
        "a decoding step behind 512 tokens, softmax, full attention, batch 1",
        replace(DECODE, length=512),
        {GPT2: Target(1.0)},
    ),
    Comparison(
        "decode-512-compiled",
        "a decoding step behind 512 tokens, softmax, full attention, batch 1, compiled with a static cache, against "
        "steps that are not compiled with a dynamic cache",
        replace(DECODE, length=512, compiled=True),
        {UNCOMPILED: Target()},
    ),
    Series(
        "decode-scaling",
        "a decoding step behind 1k to 256k tokens, softmax, chunks of 512, batch 1",
        {"decoder": tuple(replace(DECODE, length=context, chunk=512) for context in CONTEXTS)},
        growth=1.2,
        memory_growth=1.0,
        in_turns="all",
    ),
    Comparison(
        "prefill-8192-chunk512",
        "a prompt of 8192 tokens, softmax, chunks of 512; ours fills its cache and gives the last token's logits, "
        "4.40.2 runs its training forward pass",
        PREFILL,
        {OLD: Target(5.0)},
    ),
    Comparison(
        "prefill-8192-inference",
        "a prompt of 8192 tokens, softmax, chunks of 512; ours fills its cache and gives the last token's logits, "
        "4.40.2 runs in inference mode without a cache and gives all logits",
        replace(PREFILL, old_way="inference"),
        {OLD: Target()},
    ),
    Comparison(
        "prefill-8192-cached",
        "a prompt of 8192 tokens, softmax, chunks of 512; both fill a cache, ours gives the last token's logits, "
        "4.40.2 all",
        replace(PREFILL, old_way="cached"),
        {OLD: Target()},
    ),
    Comparison(
        "prefill-8192-all-logits",
        "a prompt of 8192 tokens, softmax, chunks of 512; ours fills its cache, 4.40.2 runs in inference mode without "
        "one, both give all logits",
        replace(PREFILL, old_way="inference", all_logits=True),
        {OLD: Target()},
    ),
    Comparison(
        "generate-batch8",
        "a token of greedy generation, 64 for each of 8 prompts of 20 to 300 tokens, softmax, full attention; in one "
        "batch padded on the left, against prompt by prompt",
        Workload("generate", 300, head="causal-lm", batch=8, new_tokens=64),
        {ONE_BY_ONE: Target(3.0)},
    ),
    Comparison(
        "text2text-batch16-greedy",
        "a symbol of greedy search, 8 for each of 16 words of 4 to 12 letters; phoneme models of like size",
        replace(TEXT_TO_TEXT, beams=1),
        {MARIAN: Target(1.0)},
    ),
    Comparison(
        "text2text-batch16-beam5",
        "a symbol of a search with 5 beams, 8 for each of 16 words of 4 to 12 letters; phoneme models of like size",
        TEXT_TO_TEXT,
        {MARIAN: Target(1.0)},
    ),
    Series(
        "ema-crossover",
        "our EMA back ends, forward and backward, 256 channels x 2 directions, N 16",
        {
            "reference": lengths(Workload("ema-op", 0, backend="reference"), 64, 1024),
            "fft": lengths(Workload("ema-op", 0, backend="fft"), 64, 32768),
            "chunked": lengths(Workload("ema-op", 0, backend="chunked"), 64, 32768),
        },
    ),
    Series(
        "attention-crossover",
        "our attention back ends, forward and backward, full attention, rotary bias, z 64, h 512",
        {
            "softmax reference": lengths(_attention("softmax", "reference"), 128, 4096),
            "softmax tiled": lengths(_attention("softmax", "tiled"), 128, 8192),
            "laplace reference": lengths(_attention("laplace", "reference"), 128, 4096),
            "laplace tiled": lengths(_attention("laplace", "tiled"), 128, 8192),
        },
    ),
)

CASES: dict[str, Case] = {case.name: case for case in _ALL}


def before_after(cases: list[Case]) -> tuple[list[Case], list[str]]:
    """Ours against the same of another tree: a comparison for each case, or point of a series.

    Returns:
        The comparisons, and the names of the cases left out: those that call ops, which are not a public interface.
    """
    chosen: list[Case] = []
    left_out = []
    for case in cases:
        if isinstance(case, Comparison):
            chosen.append(replace(case, against={BEFORE: Target()}))
            continue
        points = [(f"{case.name}/{curve}@{w.length}", w) for curve, found in case.curves.items() for w in found]
        if any(workload.task.endswith("-op") for _, workload in points):
            left_out.append(case.name)
            continue
        chosen += [Comparison(name, case.title, workload, {BEFORE: Target()}) for name, workload in points]
    return chosen, left_out


def select(names: list[str] | None, registry: Mapping[str, Case] = CASES) -> list[Case]:
    """Cases by name or by pattern (`*`), in the registry's order; all of them without names.

    Raises:
        ValueError: if a name is unknown; the message lists the known ones.
    """
    if not names:
        return list(registry.values())
    for pattern in names:
        if not any(fnmatchcase(name, pattern) for name in registry):
            raise ValueError(f"Unknown case {pattern!r}. Known cases: {', '.join(registry)}.")
    return [case for name, case in registry.items() if any(fnmatchcase(name, pattern) for pattern in names)]
