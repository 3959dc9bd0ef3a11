"""What a causal model is measured at: reading a prompt, decoding steps behind a context, and generation of a batch."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import floor
from benchmarks.cases import MAMBA2, OLD, ONE_BY_ONE, UNCOMPILED, Workload
from benchmarks.memory import CACHE_METHOD
from benchmarks.models import SYMBOLS, VOCABULARY
from benchmarks.subjects import Subject, random_tokens

CHUNKS_A_PIECE = 2  # of a context that is read in pieces, so that a long one needs little memory
SHORTEST_PROMPT = 1 / 15  # of the longest
SHORTEST_SOURCE = 1 / 3


class PrefillSubject(Subject):
    """A prompt read at once, by ours into a cache; by 4.40.2 as the workload's `old_way` says.

    4.40.2 cannot leave out logits, and reads nothing that is shorter than a chunk.
    """

    def __init__(self, peer: str, module: nn.Module, workload: Workload, generator: torch.Generator):
        self.training = peer == OLD and workload.old_way == "training"
        super().__init__(module.train(self.training), workload)
        self.input_ids = random_tokens((1, workload.length), generator)
        self.options: dict[str, Any] = {"use_cache": peer != OLD or workload.old_way == "cached"}
        if peer != OLD and not workload.all_logits:
            self.options["logits_to_keep"] = 1

    def step(self, length: int | None = None) -> None:
        if length is not None:
            length = max(length, self.workload.chunk or 0)
        self._logits(self.input_ids[:, :length])

    def evaluate(self) -> dict[str, Tensor]:
        logits = self._logits(self.input_ids)
        return {"output": (logits if self.workload.all_logits else logits[:, -1:]).clone()}

    def _logits(self, input_ids: Tensor) -> Tensor:
        with torch.inference_mode(not self.training):
            return self.module(input_ids=input_ids, **self.options).logits.detach()


class DecodingSubject(Subject):
    """Decoding steps, a token each, behind a cached context; every run of them starts from the same cache.

    Compiled ones find the addresses of a static cache fixed, so that its contents are what is copied. On a GPU each is
    a captured graph.
    """

    is_prepared = True

    def __init__(self, peer: str, module: nn.Module, workload: Workload, generator: torch.Generator):
        super().__init__(module.eval(), workload)
        self.one_token: Callable[..., Any] = module
        self.compiled = workload.compiled and peer not in (UNCOMPILED, MAMBA2)
        self.without_gradients = torch.inference_mode if workload.device == "cpu" else torch.no_grad
        if self.compiled:
            mode = None if workload.device == "cpu" else "reduce-overhead"
            self.one_token = torch.compile(module, dynamic=False, mode=mode)
        known = inspect.signature(module.forward).parameters
        self.cache_name = next(name for name in ("cache", "past_key_values", "cache_params") if name in known)
        self.of_context = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
        self.parts = workload.new_tokens
        self.context = self.placed(random_tokens((workload.batch, workload.length), generator))
        self.new_tokens = self.placed(random_tokens((workload.batch, workload.new_tokens), generator))
        self.cache_of_context: Any = None
        self.cache: Any = None

    def prepare(self) -> None:
        with self.without_gradients():
            if self.cache_of_context is None:
                self._read_context()
            if not self.compiled:
                self.cache = copy.deepcopy(self.cache_of_context)
                return
            for layer, of_context in zip(self.cache.layers, self.cache_of_context.layers):
                for name, value in vars(of_context).items():
                    if isinstance(value, Tensor):
                        getattr(layer, name).copy_(value)

    def step(self, length: int | None = None) -> None:
        with self.without_gradients():
            for token in self.new_tokens.split(1, dim=1):
                self._forward(token)

    def evaluate(self) -> dict[str, Tensor]:
        self.prepare()
        with self.without_gradients():
            return {"output": torch.cat([self._forward(token) for token in self.new_tokens.split(1, dim=1)], dim=1)}

    def memory(self) -> tuple[int, str]:
        """Bytes that the cache holds after the steps; what a step needs beside it for a moment does not count."""
        self.prepare()
        self.step()
        return tensor_bytes(self.cache), CACHE_METHOD

    def work(self) -> floor.Work:
        self.module.requires_grad_(False)  # or the counter looks for a graph
        self.prepare()
        token, given = self.new_tokens[:, :1], {self.cache_name: self.cache}
        with self.without_gradients():
            operations = floor.counted(lambda: self.module(input_ids=token, use_cache=True, **given))
        return floor.Work(operations, floor.weights_read(self.module) + tensor_bytes(self.cache))

    def forget(self) -> None:
        super().forget()
        self.cache_of_context = self.cache = None

    def _read_context(self) -> None:
        """Fill the cache; the last token on its own, so that no buffer has to grow in the first step that counts."""
        chunk, length = self.workload.chunk, self.workload.length
        self.cache = self._static_cache() if self.compiled else None
        for piece in self.context[:, :-1].split(CHUNKS_A_PIECE * chunk if chunk else length, dim=1):
            self._forward(piece)
        self._forward(self.context[:, -1:])
        self.cache_of_context = copy.deepcopy(self.cache) if self.compiled else self.cache

    def _static_cache(self) -> Any:
        from transformers import StaticCache

        length = self.workload.length + self.workload.new_tokens
        return StaticCache(config=self.module.config, max_cache_len=length)

    def _forward(self, input_ids: Tensor) -> Tensor:
        forward = self.one_token if input_ids.shape[1] == 1 else self.module
        options = {} if input_ids.shape[1] == 1 else self.of_context
        output = forward(input_ids=input_ids, use_cache=True, **options, **{self.cache_name: self.cache})
        self.cache = getattr(output, self.cache_name)
        # the next step of a captured graph writes where this one did
        return output.logits.clone() if self.compiled else output.logits


class GenerationSubject(Subject):
    """Generation for prompts of unequal lengths, padded on the left, or each on its own; sources on the right."""

    def __init__(self, peer: str, module: Any, workload: Workload, generator: torch.Generator):
        super().__init__(module.eval(), workload)
        self.generate = module.generate
        self.parts = workload.batch * workload.new_tokens
        self.one_by_one = peer == ONE_BY_ONE
        self.is_encoder_decoder = workload.head == "text-to-text"
        vocabulary = SYMBOLS if self.is_encoder_decoder else VOCABULARY
        self.input_ids = random_tokens((workload.batch, workload.length), generator, vocabulary)
        share = SHORTEST_SOURCE if self.is_encoder_decoder else SHORTEST_PROMPT
        shortest = max(1, round(share * workload.length))
        lengths = torch.linspace(shortest, workload.length, workload.batch).round().long()
        columns = torch.arange(workload.length)
        if self.is_encoder_decoder:
            self.attention_mask = (columns < lengths.unsqueeze(1)).long()
        else:
            self.attention_mask = (columns >= workload.length - lengths.unsqueeze(1)).long()
        self.input_ids[self.attention_mask == 0] = module.config.pad_token_id
        module.generation_config.eos_token_id = None  # every row gets all its tokens

    def step(self, length: int | None = None) -> None:
        self._generate(length or self.workload.length)

    def evaluate(self) -> dict[str, Tensor]:
        return {"tokens": self._generate(self.workload.length)}

    def _generate(self, length: int) -> Tensor:
        """The tokens (batch, new_tokens) behind the last `length` columns."""
        batch = self.input_ids[:, -length:], self.attention_mask[:, -length:]
        if not self.one_by_one:
            return self._continue(*batch)
        rows = zip(*(tensor.split(1) for tensor in batch))
        return torch.cat([self._continue(ids[:, mask[0] == 1], mask[:, mask[0] == 1]) for ids, mask in rows])

    def _continue(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        tokens = self.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            max_new_tokens=self.workload.new_tokens,
            num_beams=self.workload.beams,
            do_sample=False,
        )
        return tokens[:, 1 if self.is_encoder_decoder else input_ids.shape[1] :]


def tensor_bytes(holder: Any) -> int:
    """Bytes of memory of all tensors that an object holds; what several of them share counts once."""
    storages: dict[int, int] = {}
    seen: set[int] = set()

    def visit(value: Any) -> None:
        if isinstance(value, Tensor):
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, dict):
                parts = list(value.values())
            elif isinstance(value, (list, tuple)):
                parts = list(value)
            else:
                parts = list(getattr(value, "__dict__", {}).values())
            for part in parts:
                visit(part)

    visit(holder)
    return sum(storages.values())
