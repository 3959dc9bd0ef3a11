"""The page's answers: functions of a model and of a visitor's text. Mistakes raise UserError."""

from __future__ import annotations

import math
import string
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any

from ..cli.fill_mask import MASK, candidates_of, check_masks, fitted
from ..cli.generate import GenerationSettings
from ..cli.generator import Generated, Prompt, Stats
from ..cli.loading import MASKED
from ..cli.runtime import UserError, shortened
from ..cli.text2text import check_texts
from ..interpret import attribution
from ..interpret.attribution import Attribution, questions
from .models import Served

MAX_CHARACTERS = 20_000
MAX_MASKS = 8
MAX_LINES = 50
MAX_NEW_TOKENS = 500
CANDIDATES = 5
LABELS = 10
MAX_EXPLAINED = 512  # tokens: an explanation computes a text about fifty times


@dataclass(frozen=True)
class Choice:
    """A candidate for a mask (with its token) or a label, and its probability."""

    text: str
    probability: float
    token: int = -1


def check_text(text: str, limit: int = MAX_CHARACTERS) -> None:
    """Refuses a text that is empty, too long or not valid Unicode, before any work.

    Raises:
        UserError: names the limit and the length of the text.
    """
    if not text.strip():
        raise UserError("there is no text yet; type one, or choose an example")
    if len(text) > limit:
        raise UserError(f"the text has {len(text):,} characters, but the page takes at most {limit:,}; shorten it")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"{shortened(text)!r} is not valid Unicode: it contains half of a surrogate pair")


def fill(served: Served, text: str) -> tuple[list[str], list[list[Choice]]]:
    """The pieces of text around the masks, and the candidates for each mask, best first.

    Raises:
        UserError: for a text without a mask, with too many masks, or too long.
    """
    check_text(text)
    filler = served.ready
    parts = _parts(served, text)
    prepared = filler.mask_token.join(parts)
    check_masks([prepared], filler.mask_token)
    if len(parts) - 1 > MAX_MASKS:
        raise UserError(f"the text has {len(parts) - 1} masks, but the page fills at most {MAX_MASKS}; leave out some")
    special = set(filler.tokenizer.all_special_ids)
    wanted = min(CANDIDATES + len(special), filler.config.vocab_size)
    with served.lock:
        served.check_tokens(len(filler.tokenizer(prepared, verbose=False)["input_ids"]))
        masks = candidates_of(filler, prepared, wanted)
    choices = [
        [Choice(found["token_str"], found["score"], found["token"]) for found in mask if found["token"] not in special]
        for mask in masks
    ]
    return parts, [mask[:CANDIDATES] for mask in choices]


def put_in(served: Served, text: str, mask: Any, token: Any) -> str:
    """The text with a candidate in place of a mask.

    Args:
        served: The model.
        text: The current text.
        mask: Index of the mask.
        token: Id of the candidate.

    Raises:
        UserError: if the text has changed and the mask no longer exists.
    """
    parts, tokenizer = _parts(served, text), served.ready.tokenizer
    if not (isinstance(mask, int) and 0 <= mask < len(parts) - 1 and isinstance(token, int)):
        raise UserError("the text has changed since its masks were filled; fill them again")
    if not 0 <= token < len(tokenizer):
        raise UserError(f"the model has no token {token}")
    before, word = fitted(MASK.join(parts[: mask + 1]), tokenizer.decode([token]), served.ready.swallows_space)
    return before + word + MASK.join(parts[mask + 1 :])


def _parts(served: Served, text: str) -> list[str]:
    mask = served.ready.mask_token
    return text.replace(MASK, mask).split(mask)


def write(served: Served, prompt: str, new_tokens: int, temperature: float, top_p: float) -> Iterator[str | Generated]:
    """The continuation of a prompt: pieces as they are generated, and at the end the whole text.

    Closing the iterator stops the generation at the next token.

    Args:
        served: The model.
        prompt: The text to continue.
        new_tokens: Most tokens to add.
        temperature: Temperature of sampling; 0 always takes the most likely token.
        top_p: Top-p of sampling.

    Raises:
        UserError: for numbers out of range or a prompt that is too long.
    """
    check_text(prompt)
    if not 1 <= new_tokens <= MAX_NEW_TOKENS:
        raise UserError(f"the length {new_tokens} must be 1 to {MAX_NEW_TOKENS} tokens")
    if not 0 <= temperature <= 10 or not 0 < top_p <= 1:
        raise UserError(f"temperature {temperature:g} must be 0 to 10, and top-p {top_p:g} above 0 and at most 1")
    sampling: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "top_k": 0} if temperature else {}
    settings = GenerationSettings(max_new_tokens=int(new_tokens), do_sample=bool(temperature), **sampling)
    generator = replace(served.ready, settings=settings, stats=Stats(), interrupted=False)
    with served.lock:
        tokens = len(generator.tokenizer(prompt, verbose=False)["input_ids"]) + settings.max_new_tokens
        served.check_tokens(tokens, "together with the new tokens, the text has")
        encoded = generator.encode(prompt)
    return _stream(generator, encoded)


def _stream(generator: Any, prompt: Prompt) -> Iterator[str | Generated]:
    made: SimpleQueue[str | Generated | Exception] = SimpleQueue()
    stopped = threading.Event()

    def put(piece: str) -> None:
        if stopped.is_set():
            raise InterruptedError
        made.put(piece)

    def work() -> None:
        try:
            made.put(generator.run([prompt], write=put)[0])
        except Exception as error:  # raised again by the consumer of the pieces
            made.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        while isinstance(piece := made.get(), str):
            yield piece
        if isinstance(piece, Exception):
            raise piece
        yield piece
    finally:
        stopped.set()


def convert(served: Served, text: str) -> tuple[list[tuple[str, str]], list[str]]:
    """Each line (or word) with its output, and those with characters that the model has no token for.

    A model whose tokenizer drops spaces takes single words: then every word is a text of its own, in lower case and
    without surrounding punctuation if the model does not know it otherwise.

    Raises:
        UserError: for too many lines, or a line that is too long.
    """
    check_text(text)
    transducer = served.ready
    tokenizer = transducer.tokenizer
    with served.lock:
        words = tokenizer("a b")["input_ids"] == tokenizer("ab")["input_ids"]
        lines = text.split() if words else [line.strip() for line in text.splitlines() if line.strip()]
        if len(lines) > MAX_LINES:
            raise UserError(
                f"the text has {len(lines)} {'words' if words else 'lines'}, but the page takes at most {MAX_LINES}; "
                "leave out some"
            )
        sources = {line: line for line in lines}
        if words:
            strange = check_texts(transducer, lines)
            sources |= {line: line.lower().strip(string.punctuation) or line for line in strange}
        unknown = check_texts(transducer, list(sources.values()))
        outputs = dict(transducer.run(list(dict.fromkeys(sources.values()))))
    return [(line, outputs[sources[line]][0]) for line in lines], unknown


def explain(served: Served, text: str) -> list[Attribution]:
    """Explains which tokens led to the model's answer: the first candidate of each mask, the next token, or the class.

    Raises:
        UserError, RecipeError: for a text that cannot be answered or explained.
    """
    tokenizer, best = served.ready.tokenizer, []
    if served.kind == MASKED:
        parts, masks = fill(served, text)
        text, best = tokenizer.mask_token.join(parts), [choices[0].token for choices in masks]
    check_text(text)
    with served.lock:
        asked = questions(served.model, tokenizer, text)
    if best:
        asked = [replace(question, outputs=(token,)) for question, token in zip(asked, best, strict=True)]
    tokens = len(asked[0].ids)
    if tokens > MAX_EXPLAINED:
        raise UserError(f"the text has {tokens:,} tokens, but the page explains at most {MAX_EXPLAINED}; shorten it")
    return [attribution.explain(served.model, tokenizer, question) for question in asked]


def classify(served: Served, text: str) -> list[Choice]:
    """The most likely labels of a text, best first.

    Raises:
        UserError: for a text that is too long.
    """
    check_text(text)
    classifier = served.ready
    with served.lock:
        served.check_tokens(len(classifier.tokenizer(text, verbose=False)["input_ids"]))
        (scores,) = classifier.scores([(text,)])
    choices = [Choice(label, float(score)) for label, score in zip(classifier.labels, scores) if math.isfinite(score)]
    return sorted(choices, key=lambda choice: -choice.probability)[:LABELS]
