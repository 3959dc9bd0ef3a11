"""Checks with small models that Mega computes the right numbers with the installed versions and devices.

`mega doctor` shows the findings of `examine`. Each check computes the same numbers in two ways and gives their
deviation.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import DynamicCache

from . import MegaConfig, MegaForCausalLM, MegaForConditionalGeneration, MegaForMaskedLM, MegaSeq2SeqConfig
from ._version import __version__
from .ops.attention import attention
from .ops.ema import ema, ema_coefficients
from .ops.layout import self_attention_layout
from .ops.relative_bias import RotaryBias
from .releases import NEWEST_TESTED, OLDEST_TESTED

LIBRARIES = (
    "accelerate", "datasets", "peft", "trl", "sentence-transformers", "scikit-learn", "sacrebleu", "triton", "torchao",
    "matplotlib",
)  # fmt: skip
VOCABULARY = 61
LENGTH = 45
CHUNK = 8
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "nffn_hidden_size": 48,
    "shared_representation_size": 16,
    "ema_projection_size": 4,
    "max_positions": 128,
    "initializer_range": 0.5,  # larger than usual, so that probabilities of tokens differ
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": None,  # texts of a fixed length
}
CAUSAL: dict[str, Any] = {"is_decoder": True, "bidirectional": False}
KINDS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "softmax in chunks": {"use_chunking": True, "chunk_size": CHUNK},
    "laplace in chunks": {"use_chunking": True, "chunk_size": CHUNK, "attention_activation": "laplace"},
    "relu2": {"attention_activation": "relu2"},
}
LIMIT = 1e-4
"""Largest deviation that float32 rounding explains, for numbers of size 1."""
HALF_LIMITS = {"float16": 0.01, "bfloat16": 0.05}


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Args:
        device: The device it ran on: "cpu", "cuda:0", "mps".
        check: The name of the check.
        deviation: Largest difference relative to the largest value or 1, or None if the check failed to run.
        limit: The allowed deviation.
        seconds: Time it took.
        error: Type and message of the exception, if the check failed to run.
    """

    device: str
    check: str
    deviation: float | None
    limit: float
    seconds: float
    error: str | None = None

    @property
    def passed(self) -> bool:
        """Whether it ran, and the deviation is within the limit."""
        return self.deviation is not None and self.deviation <= self.limit


def surroundings(devices: Iterable[torch.device]) -> dict[str, Any]:
    """Versions, devices, threads and optional libraries, as JSON values."""
    return {
        "mega-transformers": __version__,
        "transformers": importlib.metadata.version("transformers"),
        "transformers_tested": [OLDEST_TESTED, NEWEST_TESTED],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "devices": {str(device): _described(device) for device in devices},
        "libraries": {name: _version(name) for name in LIBRARIES},
    }


def examine(device: torch.device) -> Iterator[Finding]:
    """Runs all checks on a device, one after the other; an exception becomes part of the finding."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for models this small, one thread is fastest
    try:
        for check, limit, run in _checks():
            yield _finding(device, check, limit, run)
    finally:
        torch.set_num_threads(threads)


def number_of_checks() -> int:
    """The number of checks on a device."""
    return len(list(_checks()))


def _finding(device: torch.device, check: str, limit: float, run: Callable[[torch.device], float]) -> Finding:
    began = time.perf_counter()
    found, error = None, None
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            found = run(device)
        if not math.isfinite(found):
            found, error = None, "the numbers are not finite, or their count is not the expected one"
    except Exception as raised:  # a broken installation may raise anything
        error = f"{type(raised).__name__}: {' '.join(str(raised).split())}"
    return Finding(str(device), check, found, limit, time.perf_counter() - began, error)


def _checks() -> Iterator[tuple[str, float, Callable[[torch.device], float]]]:
    for kind in KINDS:
        yield f"cached decoding = uncached ({kind})", LIMIT, partial(_cached_decoding, kind=kind)
    yield "reading a prompt in pieces = at once", LIMIT, _pieces
    yield "generate, greedy = the model's own logits", LIMIT, _greedy
    yield "generate, 3 beams = the model's own logits", LIMIT, _beams
    yield "generate, assisted = greedy", LIMIT, _assisted
    yield "generate, static cache = greedy", LIMIT, _static
    yield "generate, encoder-decoder = the model's own logits", LIMIT, _text_to_text
    yield "padding on the right = no padding", LIMIT, partial(_padded, side="right")
    yield "padding on the left = no padding", LIMIT, partial(_padded, side="left")
    yield "packed rows = documents one by one", LIMIT, _packed
    yield "save and load", 0.0, _saved
    yield "EMA and its gradients = the definition", LIMIT, _ema_gradients
    for activation in ("softmax", "laplace", "relu2"):
        yield (
            f"{activation} attention and its gradients = the definition",
            LIMIT,
            partial(_attention_gradients, activation=activation),
        )
    for name, limit in HALF_LIMITS.items():
        yield f"{name} = float32", limit, partial(_half, dtype=getattr(torch, name))


# -- models and their inputs


def _causal(device: torch.device, kind: str = "softmax in chunks") -> MegaForCausalLM:
    return MegaForCausalLM(MegaConfig(**{**SIZES, **CAUSAL, **KINDS[kind]})).eval().to(device)


def _ids(device: torch.device, rows: int = 2, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (rows, length)).to(device)


def deviation(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, relative to the largest value if that is above 1; infinite for unequal shapes."""
    if got.shape != expected.shape:
        return math.inf
    got, expected = got.detach().cpu().double(), expected.detach().cpu().double()
    return float((got - expected).abs().max() / expected.abs().max().clamp(min=1))


def _mismatch(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Share of the tokens that differ."""
    if got.shape != expected.shape:
        return 1.0
    return float((got != expected).double().mean())


# -- the checks: each returns a deviation


@torch.no_grad()
def _cached_decoding(device: torch.device, kind: str) -> float:
    model, ids = _causal(device, kind), _ids(device)
    whole = model(ids, use_cache=False).logits
    cache = DynamicCache(config=model.config)
    steps = [model(ids[:, : CHUNK + 3], cache=cache).logits]
    steps += [model(token, cache=cache).logits for token in ids[:, CHUNK + 3 :].split(1, dim=1)]
    return deviation(torch.cat(steps, dim=1), whole)


@torch.no_grad()
def _pieces(device: torch.device) -> float:
    model, ids = _causal(device), _ids(device)
    cache = DynamicCache(config=model.config)
    sizes = [1, 2 * CHUNK + 3, CHUNK, 5]
    pieces = ids.split([*sizes, LENGTH - sum(sizes)], dim=1)
    got = torch.cat([model(piece, cache=cache).logits for piece in pieces], dim=1)
    return deviation(got, model(ids, use_cache=False).logits)


def _generated(model: Any, ids: torch.Tensor, **options: Any) -> Any:
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=20,
        return_dict_in_generate=True,
        output_logits=True,
        output_scores=True,
        disable_compile=True,
        **{"do_sample": False, **options},
    )


def _against_own_logits(model: Any, ids: torch.Tensor, made: Any) -> float:
    """Deviation of the logits of `generate` from those of one forward pass over its output."""
    with torch.no_grad():
        whole = model(made.sequences, use_cache=False).logits[:, ids.shape[1] - 1 : -1]
    return deviation(torch.stack(made.logits, dim=1), whole)


def _greedy(device: torch.device) -> float:
    model, ids = _causal(device), _ids(device, length=13)
    return _against_own_logits(model, ids, _generated(model, ids))


def _beams(device: torch.device) -> float:
    """Deviation of the beams' scores, and of their tokens from those of a search without a cache."""
    model, ids = _causal(device), _ids(device, length=13)
    made = _generated(model, ids, num_beams=3, length_penalty=0.0)
    plain = _generated(model, ids, num_beams=3, length_penalty=0.0, use_cache=False)
    with torch.no_grad():
        logits = model(made.sequences, use_cache=False).logits[:, ids.shape[1] - 1 : -1]
    tokens = made.sequences[:, ids.shape[1] :].unsqueeze(-1)
    scores = logits.log_softmax(-1).gather(-1, tokens).sum(dim=(1, 2))
    return max(deviation(made.sequences_scores, scores), _mismatch(made.sequences, plain.sequences))


def _assisted(device: torch.device) -> float:
    model, ids = _causal(device), _ids(device, rows=1, length=13)
    made = _generated(model, ids, assistant_model=_causal(device))
    expected = _generated(model, ids)
    return max(_mismatch(made.sequences, expected.sequences), _against_own_logits(model, ids, made))


def _static(device: torch.device) -> float:
    model, ids = _causal(device), _ids(device, length=13)
    made = _generated(model, ids, cache_implementation="static")
    return max(_mismatch(made.sequences, _generated(model, ids).sequences), _against_own_logits(model, ids, made))


def _text_to_text(device: torch.device) -> float:
    config = MegaSeq2SeqConfig(
        encoder=SIZES, decoder={**SIZES, **KINDS["softmax in chunks"]}, decoder_start_token_id=0
    )
    model, ids = MegaForConditionalGeneration(config).eval().to(device), _ids(device, length=13)
    mask = torch.ones_like(ids)
    mask[0, 9:] = 0
    made = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=20,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    with torch.no_grad():
        whole = model(ids, attention_mask=mask, decoder_input_ids=made.sequences, use_cache=False).logits[:, :-1]
    return deviation(torch.stack(made.logits, dim=1), whole)


@torch.no_grad()
def _padded(device: torch.device, side: str) -> float:
    worst = 0.0
    for model in (_causal(device), MegaForMaskedLM(MegaConfig(**SIZES)).eval().to(device)):
        ids = _ids(device)
        start, stop = (0, 30) if side == "right" else (LENGTH - 30, LENGTH)
        mask = torch.ones_like(ids)
        mask[0] = 0
        mask[0, start:stop] = 1
        got = model(ids.masked_fill(mask == 0, SIZES["pad_token_id"]), attention_mask=mask).logits
        worst = max(
            worst,
            deviation(got[:1, start:stop], model(ids[:1, start:stop]).logits),
            deviation(got[1:], model(ids[1:]).logits),
        )
    return worst


@torch.no_grad()
def _packed(device: torch.device) -> float:
    worst, lengths = 0.0, [11, 1, 20, LENGTH - 32]
    positions = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0).to(device)
    for model in (_causal(device), MegaForMaskedLM(MegaConfig(**SIZES)).eval().to(device)):
        ids = _ids(device, rows=1)
        got = model(ids, position_ids=positions).logits.split(lengths, dim=1)
        expected = [model(document).logits for document in ids.split(lengths, dim=1)]
        worst = max(worst, *map(deviation, got, expected))
    return worst


@torch.no_grad()
def _saved(device: torch.device) -> float:
    model, ids = _causal(device), _ids(device)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = MegaForCausalLM.from_pretrained(folder).eval().to(device)
    return max(
        deviation(loaded.state_dict()[name], weight) for name, weight in model.state_dict().items()
    ) + deviation(loaded(ids).logits, model(ids).logits)


def _ema_gradients(device: torch.device) -> float:
    x = torch.randn(2, 150, 3).to(device)
    shapes = [(6, 4, 1)] * 3 + [(6, 4)]
    parameters = [torch.randn(shape).to(device) for shape in shapes]
    return _with_gradients(
        [x, *parameters],
        lambda x, *given: ema(x, ema_coefficients(*given), bidirectional=True)[0],
        lambda x, *given: ema(x, ema_coefficients(*given), bidirectional=True, backend="reference")[0],
    )


def _attention_gradients(device: torch.device, activation: str) -> float:
    q, k, v = (torch.randn(2, 150, width).to(device) for width in (16, 16, 24))
    alpha, beta = (torch.randn(1, 16).to(device) for _ in range(2))
    mask = torch.ones(2, 150, dtype=torch.long, device=device)
    mask[0, 120:] = 0
    layout = self_attention_layout(mask, 150, causal=True)

    def run(backend: str | None) -> Callable[..., torch.Tensor]:
        def attended(q, k, v, alpha, beta):
            return attention(q, k, v, RotaryBias(alpha, beta), layout, activation=activation, backend=backend)[0]

        return attended

    return _with_gradients([q, k, v, alpha, beta], run(None), run("reference"))


def _with_gradients(inputs: list[torch.Tensor], fast: Callable[..., Any], reference: Callable[..., Any]) -> float:
    """Deviation of values and of all gradients."""
    results = []
    for function in (fast, reference):
        leaves = [x.clone().requires_grad_() for x in inputs]
        output = function(*leaves)
        weight = torch.linspace(-1, 1, output.numel(), device=output.device).view_as(output)
        (output * weight).sum().backward()
        results.append([output, *(leaf.grad for leaf in leaves)])
    return max(map(deviation, *results))


@torch.no_grad()
def _half(device: torch.device, dtype: torch.dtype) -> float:
    """Uses one set of weights, rounded to the dtype, of the usual size: large weights amplify rounding."""
    ids = _ids(device)
    model = MegaForCausalLM(MegaConfig(**{**SIZES, **CAUSAL, "initializer_range": 0.05})).eval().to(device)
    half = MegaForCausalLM(model.config).eval().to(device)
    half.load_state_dict(model.state_dict())
    half.to(dtype)
    model.load_state_dict({name: weight.float() for name, weight in half.state_dict().items()})
    expected = model(ids).logits
    size = expected.abs().max()
    return deviation(half(ids).logits / size, expected / size)


# -- versions and devices


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        return f"{names[0]}, {os.cpu_count()} cores"
    except (OSError, IndexError):  # not Linux, or a Linux without processor names
        return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def _described(device: torch.device) -> str:
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return "Apple GPU" if device.type == "mps" else _processor()
