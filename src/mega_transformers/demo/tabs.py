"""The tabs: gradio components around the functions of `answers` and `reading`."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, Literal

import gradio as gr

from ..assets import DEFAULT_PAIR_MODEL
from ..cli.fill_mask import MASK
from ..cli.generate import TEMPERATURE, TOP_P
from ..cli.loading import CAUSAL, CLASSIFIER, MASKED, PAIRS
from ..cli.runtime import UserError, is_out_of_memory
from ..errors import RecipeError
from ..interpret import rendering
from . import answers, chart, markup, reading
from .models import Served

Models = dict[str, Served]
SECONDS_BETWEEN_CHARTS = 0.5
SECONDS_BETWEEN_PIECES = 0.04  # updates per second: each costs the server and the browser some work
# a click on a candidate goes to the server; the answer replaces the button that had the focus
PICK = """
let picked = false;
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-token]');
  if (!button) return;
  picked = true;
  trigger('pick', {mask: Number(button.dataset.mask), token: Number(button.dataset.token)});
});
watch('value', () => {
  if (picked) element.querySelector('button[data-token], [tabindex]')?.focus();
  picked = false;
});
"""
SAMPLE, TYPED, FILE = "The example: speeches and essays", "A text of mine", "A file"


def told(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose answer is HTML; mistakes of a visitor and lack of memory become sentences."""

    def sentence(error: Exception) -> str:
        if isinstance(error, (UserError, RecipeError)):
            return markup.mistake(str(error))
        if is_out_of_memory(error):
            return markup.mistake("there is not enough memory for a text of this length; give a shorter text")
        raise error

    @wraps(function)
    def answer(*args: Any) -> Any:
        try:
            return function(*args)
        except Exception as error:
            return sentence(error)

    @wraps(function)
    def stream(*args: Any) -> Iterator[Any]:
        try:
            yield from function(*args)
        except Exception as error:
            yield sentence(error)

    return stream if inspect.isgeneratorfunction(function) else answer


def _asked(
    function: Callable[..., Any],
    inputs: list[Any],
    button: str,
    examples: tuple[str, ...] = (),
    at_a_time: int | Literal["default"] | None = "default",
    **options: Any,
) -> gr.HTML:
    """An answer below the buttons that start and stop it; with examples, the second input is a text.

    Args:
        function: Returns the answer, or yields it as it grows.
        inputs: Its arguments.
        button: The label of the button.
        examples: Texts for the second input; a click asks one.
        at_a_time: Visitors served at the same time.
        options: Options of `gr.HTML`.
    """
    grows = inspect.isgeneratorfunction(function)
    with gr.Row():
        ask = gr.Button(button, variant="primary", scale=0, min_width=160)
        stop = gr.Button("Stop", scale=0, min_width=100, visible=grows)
    answer = gr.HTML(elem_classes="answer", **options)
    progress: Any = "minimal" if grows else "hidden"
    work: dict[str, Any] = {"fn": function, "inputs": inputs, "outputs": answer, "show_progress": progress}
    work |= {"concurrency_limit": at_a_time, "api_visibility": "private"}
    events: list[Any] = [ask.click(**{**work, "api_visibility": "public"})]
    if examples:
        chosen = gr.Examples([[example] for example in examples], inputs[1], label="Examples")
        events += [inputs[1].submit(**work), chosen.load_input_event.then(**work)]
    stop.click(None, cancels=events)
    return answer


def _why(models: Models, inputs: list[Any]) -> None:
    """A button that shows which tokens led to the most likely answer."""

    @told
    def explain(name: str, text: str) -> str:
        return "".join(map(rendering.fragment, answers.explain(models[name], text)))

    button = gr.Button("Why?", scale=0, min_width=100)
    shown = gr.HTML(elem_classes="why")
    button.click(explain, inputs, shown, show_progress="minimal", api_visibility="private")


def _chooser(models: Models) -> gr.Radio:
    return gr.Radio(list(models), value=next(iter(models)), label="Model", visible=len(models) > 1)


def fill_masks(models: Models) -> None:
    """Candidates for masks as bars; a click inserts one, and the remaining masks are filled again."""

    @told
    def fill(name: str, text: str) -> str:
        return markup.masks(*answers.fill(models[name], text), models[name].ready.swallows_space)

    def pick(name: str, text: str, event: gr.EventData) -> tuple[str, str]:
        try:
            text = answers.put_in(models[name], text, event.mask, event.token)
        except UserError as error:
            return text, markup.mistake(str(error))
        return text, fill(name, text) if MASK in text else markup.filled(text)

    examples = (
        f"Ironclads were widely used in South {MASK}.",
        f"The {MASK} of the United States gave a {MASK}.",
        f"We shall win this {MASK}, and the {MASK} that follows.",
    )
    model = _chooser(models)
    text = gr.Textbox(examples[0], label=f"Text with {MASK} in place of a word", max_lines=10)
    answer = _asked(fill, [model, text], "Fill masks", examples, js_on_load=PICK)
    answer.pick(pick, [model, text], [text, answer], show_progress="hidden", api_visibility="private")
    _why(models, [model, text])


def write(models: Models) -> None:
    """The continuation of a text, shown as it is generated."""

    @told
    def write(name: str, prompt: str, length: int, temperature: float, top_p: float) -> Iterator[str]:
        text, sent = "", 0.0
        for piece in answers.write(models[name], prompt, length, temperature, top_p):
            if isinstance(piece, str):
                text += piece
                if time.monotonic() - sent >= SECONDS_BETWEEN_PIECES:
                    yield markup.prose(prompt, text)
                    sent = time.monotonic()
            else:
                rate = piece.tokens / piece.seconds
                numbers = f"{piece.tokens} tokens in {piece.seconds:.1f} s: {rate:,.0f} tokens per second"
                yield markup.prose(prompt, piece.text, numbers)

    examples = ("The ship", "The history of the city began", "It is a truth universally acknowledged, that")
    model = _chooser(models)
    text = gr.Textbox(examples[0], label="The beginning of a text", max_lines=10)
    with gr.Row():
        length = gr.Slider(1, answers.MAX_NEW_TOKENS, 100, step=1, label="Length in tokens", min_width=220)
        temperature = gr.Slider(
            0, 2, TEMPERATURE, step=0.1, label="Temperature (0: always the most likely token)", min_width=220
        )
        top_p = gr.Slider(0.05, 1, TOP_P, step=0.05, label="Top-p (1: all tokens)", min_width=220)
    _asked(write, [model, text, length, temperature, top_p], "Write", examples)
    _why(models, [model, text])


def text_to_text(models: Models) -> None:
    """Each line or word beside the model's output."""

    @told
    def convert(name: str, text: str) -> str:
        return markup.pairs(*answers.convert(models[name], text))

    label, examples = "Texts, one per line", ("The ship left the port.", "How are you?\nThank you, I am well.")
    if DEFAULT_PAIR_MODEL in models:
        label, examples = "Words to convert to phonemes", ("moving average", "A whale of a tale!")
    model = _chooser(models)
    _asked(convert, [model, gr.Textbox(examples[0], label=label, lines=2, max_lines=10)], "Convert", examples)


def classify(models: Models) -> None:
    """Labels with their probabilities."""

    @told
    def classify(name: str, text: str) -> str:
        return markup.labels(answers.classify(models[name], text))

    examples = ("The nicest book that I have read this year.", "The ship arrived two weeks late, and empty.")
    model = _chooser(models)
    text = gr.Textbox(examples[0], label="Text", max_lines=10)
    _asked(classify, [model, text], "Classify", examples)
    _why(models, [model, text])


def read_long(models: Models) -> None:
    """Time and memory against length while the model reads a book."""

    @told
    def read(name: str, source: str, typed: str, file: str | None) -> Iterator[str]:
        if source == FILE and file is None:
            raise UserError("there is no file yet; choose a file, or another text")
        text = reading.example() if source == SAMPLE else typed if source == TYPED else reading.text_of(str(file))
        drawn = float("-inf")
        for answer in reading.read(models[name], text):
            if answer.finished or time.monotonic() - drawn >= SECONDS_BETWEEN_CHARTS:
                yield markup.reading(answer, chart.draw(answer))
                drawn = time.monotonic()

    model = _chooser(models)
    source = gr.Radio([SAMPLE, TYPED, FILE], value=SAMPLE, label="Text")
    typed = gr.Textbox(label=f"At most {reading.MAX_CHARACTERS:,} characters", lines=6, max_lines=10, visible=False)
    file = gr.File(label="A .txt file, UTF-8", file_types=[".txt"], visible=False)
    source.change(
        lambda source: (gr.update(visible=source == TYPED), gr.update(visible=source == FILE)),
        source,
        [typed, file],
        api_visibility="private",
        show_progress="hidden",
    )
    # one visitor at a time, since time and memory are measured
    _asked(read, [model, source, typed, file], "Read", at_a_time=1)


# title of a tab, the kinds of models that serve it, and its function
TABS = (
    ("Fill masks", (MASKED,), fill_masks),
    ("Write", (CAUSAL,), write),
    ("Convert", (PAIRS,), text_to_text),
    ("Classify", (CLASSIFIER,), classify),
    ("Long text", (CAUSAL, MASKED), read_long),
)
