"""A causal language model that continues prompts. Imported late, since it imports torch."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers import CompileConfig, StaticCache, StoppingCriteria, TextStreamer

from ..evaluation.streaming import input_limit
from ..models.mega.compat_mega import CACHE_NAME
from .runtime import UserError, print_note, shortened

if TYPE_CHECKING:
    from .generate import GenerationSettings

DECODING = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}

# preceding tokens that decide how a token is decoded: whether it begins a word or continues a character
CONTEXT = 8
UNFINISHED = "\ufffd"
CAPTURED_TOKENS = 256  # of which the length of a captured cache is a multiple


@dataclass(frozen=True)
class Prompt:
    """A text to continue, and its ids without a final `</s>`."""

    text: str
    ids: list[int]


@dataclass(frozen=True)
class Generated:
    """The continuation of a prompt: its text, its number of tokens, and the seconds of its batch."""

    text: str
    tokens: int
    seconds: float


@dataclass
class Stats:
    """Tokens read and generated so far. Reading a prompt also gives the first new token."""

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"prefill {_rate(self.prefill_tokens, self.prefill_seconds)}, "
            f"decode {_rate(self.decode_tokens, self.decode_seconds)}"
        )


@dataclass
class Generator:
    """A causal language model with its tokenizer.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        settings: How texts continue.
        captured: Whether a decoding step is compiled and captured as a CUDA graph.

    `stats` counts over all calls; `interrupted` says whether Ctrl-C ended the last call early.
    """

    model: Any
    tokenizer: Any
    settings: GenerationSettings
    stats: Stats = field(default_factory=Stats)
    interrupted: bool = False
    captured: bool = False

    def encode(self, text: str) -> Prompt:
        """The prompt of a text.

        Raises:
            UserError: if the prompt and the new tokens are more than the model takes.
        """
        tokenizer, new = self.tokenizer, self.settings.max_new_tokens
        ids = list(tokenizer(text, verbose=False)["input_ids"])
        closing = {tokenizer.eos_token_id, tokenizer.sep_token_id}
        while len(ids) > 1 and ids[-1] in closing:
            ids.pop()
        if not ids:
            raise UserError(f"the tokenizer makes no token of the prompt {shortened(text)!r}; give another prompt")
        total = len(ids) + new - 1  # the last token is generated, but not read
        limit = input_limit(self.model.config)
        if limit is not None and total > limit:
            room = limit - len(ids) + 1
            remedy = f"lower it to {room}, or shorten the prompt" if room > 0 else "shorten the prompt"
            raise UserError(
                f"--max-new-tokens {new}: the prompt {shortened(text)!r} has {len(ids)} tokens, and the model takes "
                f"at most {limit} together with the new ones; {remedy}"
            )
        config = self.model.config
        if config.model_type == "mega" and not config.use_chunking and total > config.max_positions:
            print_note(
                f"{shortened(text)!r} and {new} more tokens are more than the max_positions={config.max_positions} "
                "the model is made for; its rotary positions continue beyond that, but the text may be worse"
            )
        return Prompt(text, ids)

    def run(self, prompts: list[Prompt], write: Callable[[str], None] | None = None) -> list[Generated]:
        """Continues all prompts in one batch; after Ctrl-C, returns the text so far.

        Args:
            prompts: The prompts, padded on the left here.
            write: Called with each new piece of text; only for a single prompt without beams.
        """
        longest = max(len(prompt.ids) for prompt in prompts)
        eos, padding = self._special_ids()
        ids = torch.full((len(prompts), longest), padding)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt.ids) :] = torch.tensor(prompt.ids)
            mask[row, longest - len(prompt.ids) :] = 1
        options: dict[str, Any] = {} if write is None else {"streamer": TextStream(self.tokenizer, write)}
        if self.captured:
            options |= captured_decoding(self.model, longest + self.settings.max_new_tokens)
        with Watch(longest) as watch:
            output = self.model.generate(
                ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                stopping_criteria=[watch],
                eos_token_id=eos or None,
                pad_token_id=padding,
                **self.settings.arguments(),
                **options,
            )
        self.interrupted = watch.interrupted
        made = [_until_end(row, eos) for row in output[:, longest:].tolist()]
        self._count(prompts, made, watch)
        return [
            Generated(text_after(self.tokenizer, prompt.ids, new), len(new), watch.seconds)
            for prompt, new in zip(prompts, made)
        ]

    def _special_ids(self) -> tuple[list[int], int]:
        """The ids that end a text, and the id that pads rows."""
        own, tokenizer = self.model.generation_config, self.tokenizer
        given = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
        eos = sorted({id for id in (*given, tokenizer.eos_token_id) if id is not None})
        return eos, next((id for id in (tokenizer.pad_token_id, own.pad_token_id, *eos) if id is not None), 0)

    def _count(self, prompts: list[Prompt], made: list[list[int]], watch: Watch) -> None:
        first = sum(min(len(new), watch.first_tokens) for new in made)
        self.stats.prefill_tokens += sum(len(prompt.ids) for prompt in prompts)
        self.stats.prefill_seconds += watch.first_seconds
        self.stats.decode_tokens += sum(map(len, made)) - first
        self.stats.decode_seconds += watch.seconds - watch.first_seconds


def capture_obstacle(model: Any) -> str | None:
    """Why decoding steps of a model cannot be captured as a CUDA graph; None if they can."""
    from torch.utils._triton import has_triton

    if model.device.type != "cuda":
        return f"the model runs on {model.device}, and CUDA graphs need a CUDA device"
    if not getattr(model, "_can_compile_fullgraph", False):
        return f"transformers does not compile a decoding step of {type(model).__name__} as one graph"
    if not has_triton():
        return "this PyTorch finds no Triton for this GPU: pip install 'mega-transformers[gpu]'"
    return None


def captured_decoding(model: Any, length: int) -> dict[str, Any]:
    """Arguments for `generate`, which with these captures a decoding step of rows of at most `length` tokens.

    Rows share a graph where the length rounded up is the same.
    """
    room = -(-length // CAPTURED_TOKENS) * CAPTURED_TOKENS
    # a graph of open shapes would be captured once for each of them
    compilation = CompileConfig(mode="reduce-overhead", dynamic=False)
    return {CACHE_NAME: StaticCache(config=model.config, max_cache_len=room), "compile_config": compilation}


class Watch(StoppingCriteria):
    """Times a run of `generate`, and ends it at Ctrl-C.

    Ctrl-C before the first token, or a second Ctrl-C, raises KeyboardInterrupt as usual.

    Args:
        prompt_length: Columns of the prompts.
    """

    def __init__(self, prompt_length: int) -> None:
        self.prompt_length = prompt_length
        self.seconds = self.first_seconds = 0.0
        self.first_tokens = 0
        self.interrupted = False

    def __enter__(self) -> Watch:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._handler = signal.signal(signal.SIGINT, self._interrupt)
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._began
        if self._main:
            signal.signal(signal.SIGINT, self._handler)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        """Whether each row should end, after every step."""
        if not self.first_tokens:
            self.first_tokens = input_ids.shape[1] - self.prompt_length
            self.first_seconds = time.perf_counter() - self._began
        return torch.full((input_ids.shape[0],), self.interrupted, device=input_ids.device)

    def _interrupt(self, *_: object) -> None:
        if self.interrupted or not self.first_tokens:
            raise KeyboardInterrupt
        self.interrupted = True


class TextStream(TextStreamer):
    """Passes on text token by token; transformers' class waits for the end of a word.

    The total equals `text_after` the prompt.

    Args:
        tokenizer: The tokenizer.
        write: Called with each piece of text.
    """

    def __init__(self, tokenizer: Any, write: Callable[[str], None]) -> None:
        super().__init__(tokenizer, **DECODING)
        self.write = write

    def put(self, value: torch.Tensor) -> None:
        """Takes the ids of the prompt first, then those of new tokens."""
        self.token_cache += value.flatten().tolist()
        if self.next_tokens_are_prompt:
            self.next_tokens_are_prompt = False
            self._forget()
            return
        text = str(self.tokenizer.decode(self.token_cache, **self.decode_kwargs))
        # an incomplete character, which later bytes may complete
        finished = max(len(text.rstrip(UNFINISHED)), self.print_len)
        self.on_finalized_text(text[self.print_len : finished])
        self.print_len = finished
        if finished == len(text) and len(self.token_cache) > 4 * CONTEXT:
            self._forget()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Hands on."""
        if text:
            self.write(text)

    def _forget(self) -> None:
        """Keeps only the last tokens, so that the work per token does not grow with the text."""
        self.token_cache = self.token_cache[-CONTEXT:]
        self.print_len = len(self.tokenizer.decode(self.token_cache, **self.decode_kwargs))


def text_after(tokenizer: Any, prompt: list[int], new: list[int]) -> str:
    """The text of the tokens that follow a prompt, including the space before its first word."""
    before = prompt[-CONTEXT:]
    return tokenizer.decode(before + new, **DECODING)[len(tokenizer.decode(before, **DECODING)) :]


def _until_end(ids: list[int], eos: list[int]) -> list[int]:
    """Ids up to and including the first that ends the text; the rest of the row is padding."""
    ends = [position for position, id in enumerate(ids) if id in eos]
    return ids[: ends[0] + 1] if ends else ids


def _rate(tokens: int, seconds: float) -> str:
    rate = f" ({tokens / seconds:,.0f} tokens/s)" if tokens and seconds else ""
    return f"{tokens:,} tokens in {seconds:.3g} s{rate}"
