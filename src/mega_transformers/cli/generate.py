"""`mega generate`: continues a text with a causal language model."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..assets import DEFAULT_CAUSAL_MODEL
from ..evaluation.metrics import MAX_BEAMS
from .device import AUTO, DeviceOption, DTypeOption, check_names, resolve_placement
from .loading import CAUSAL, ModelOption, kind_of, load, locate
from .runtime import STDIN, UserError, gather_texts, load_libraries, print_note, spinner

if TYPE_CHECKING:
    from .generator import Generated, Generator, Prompt

EXAMPLE = 'mega generate "The ship"'
TEMPERATURE = 0.8
TOP_P = 0.95
MAX_NEW_TOKENS = 2**31 - 1


@dataclass(frozen=True)
class GenerationSettings:
    """Arguments of transformers' `generate`; unused ones are None."""

    max_new_tokens: int
    do_sample: bool
    num_beams: int = 1
    repetition_penalty: float = 1.0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    prompt_lookup_num_tokens: int | None = None

    def arguments(self) -> dict[str, Any]:
        """For `generate`."""
        return {name: value for name, value in vars(self).items() if value is not None}


def generate(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="Texts to continue. '-' or no PROMPT reads stdin, one prompt per line."),
    ] = None,
    model: ModelOption = DEFAULT_CAUSAL_MODEL,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "-n", min=1, max=MAX_NEW_TOKENS, help="Most tokens to add.")
    ] = 100,
    sample: Annotated[
        bool | None,
        typer.Option(
            "--sample/--greedy",
            help="Draw tokens by their probability, or always take the most likely token. Default: --sample; with "
            "beams, --greedy.",
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            help="Sampling: below 1 prefers likely tokens, above 1 flattens the distribution. Default: "
            f"{TEMPERATURE}.",
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            min=0, help="Sampling: draw only from this number of most likely tokens; 0 means all. Default: 0."
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Sampling: draw only from the most likely tokens that together have this probability. Default: "
            f"{TOP_P}."
        ),
    ] = None,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1: tokens that have occurred before become less likely.")
    ] = 1.0,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32 - 1, help="Seed of the sampling. Default: a new seed for each call.")
    ] = None,
    num_beams: Annotated[
        int, typer.Option(min=1, max=MAX_BEAMS, help="Number of beams; the text is shown when finished.")
    ] = 1,
    prompt_lookup: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Guess up to this number of tokens at a time by copying from the text, which is faster for "
            "repetitive texts. Default: none.",
        ),
    ] = None,
    device: DeviceOption = AUTO,
    dtype: DTypeOption = AUTO,
    capture: Annotated[
        bool | None,
        typer.Option(
            "--capture/--no-capture",
            help="Compile the decoding step and run it as one captured CUDA graph. Default: on a CUDA device, if "
            "the model can and neither --num-beams nor --prompt-lookup is given.",
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Prompts per batch; above 1, texts are shown when finished.")
    ] = 1,
    whole: Annotated[
        bool, typer.Option("--whole", help="Read stdin as a single prompt instead of one per line.")
    ] = False,
    stream: Annotated[
        bool | None,
        typer.Option(help="Show text as it is generated. Default: on, except with beams, batches or --json."),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print one JSON object per prompt: prompt, text, tokens, seconds, tokens_per_second."
        ),
    ] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Print tokens per second on stderr at the end.")] = False,
) -> None:
    """Continue each PROMPT, and show it with its continuation.

    A text ends where the model ends it, or after --max-new-tokens. Ctrl-C stops early and keeps the text so far.
    """
    check_names(device, dtype)
    settings = GenerationSettings(
        max_new_tokens,
        num_beams=num_beams,
        repetition_penalty=_repetition_penalty(repetition_penalty),
        prompt_lookup_num_tokens=prompt_lookup,
        **_sampling(num_beams == 1 if sample is None else sample, temperature, top_k, top_p),
    )
    streams = _streams(stream, num_beams, batch_size, as_json)
    _check_lookup(prompt_lookup, num_beams, batch_size)
    if prompt_lookup is not None or num_beams > 1:
        if capture:
            option = "--num-beams" if num_beams > 1 else "--prompt-lookup"
            raise _mistake("--capture", f"does not work together with {option}; leave one of the two out")
        capture = False
    texts = _gather(prompts or [], whole)
    generator = load_generator(model, settings, device, dtype, capture)
    with spinner("Tokenising"):
        ready = [generator.encode(text) for text in texts]
    if seed is not None:
        from transformers import set_seed

        set_seed(seed)
    show = _stream if streams else _print_json if as_json else _print_texts
    for start in range(0, len(ready), batch_size):
        if start and not as_json:
            typer.echo()
        show(generator, ready[start : start + batch_size])
        if generator.interrupted:
            break
    if stats:
        typer.echo(generator.stats, err=True)
    if generator.interrupted:
        raise typer.Exit(130)


def load_generator(
    name: str, settings: GenerationSettings, device: str = AUTO, dtype: str = AUTO, capture: bool | None = False
) -> Generator:
    """Loads a bundled model, a folder or a hub id.

    Args:
        name: The model.
        settings: How texts continue.
        device, dtype: As the command line gives them.
        capture: Whether decoding steps are captured; None where they can be.

    Raises:
        UserError: if there is no such model, device or number format, it is not a causal language model, or its steps
            are to be captured and cannot be.
    """
    place = locate(name)
    load_libraries()
    placement = resolve_placement(device, dtype)
    from ..errors import RecipeError
    from ..evaluation.streaming import check_causal
    from .generator import Generator, capture_obstacle

    if capture and placement.device.type != "cuda":
        raise UserError(f"--capture: is for a CUDA device, and the model runs on {placement.device}; leave it out")
    model, tokenizer = load(place, kind_of(place, CAUSAL), placement)
    try:
        check_causal(model)
    except RecipeError as error:
        raise UserError(f"the model {name} cannot {CAUSAL.ability}: {error}") from error
    obstacle = capture_obstacle(model)
    if capture and obstacle:
        raise UserError(f"--capture: {obstacle}; leave it out")
    captured = obstacle is None if capture is None else capture
    if captured:
        print_note("the decoding step is compiled first, which can take a minute; --no-capture starts at once")
    return Generator(model, tokenizer, settings, captured=captured)


def _repetition_penalty(value: float) -> float:
    if not 0 < value < math.inf:
        raise _mistake("--repetition-penalty", f"{value:g} must be above 0; 1 changes nothing, 1.2 is usual")
    return value


def _sampling(do_sample: bool, temperature: float | None, top_k: int | None, top_p: float | None) -> dict[str, Any]:
    """The checked settings of sampling; refuses them without sampling."""
    if temperature is not None and not 0 < temperature < math.inf:
        raise _mistake("--temperature", f"{temperature:g} must be above 0; for the most likely tokens give --greedy")
    if top_p is not None and not 0 < top_p <= 1:
        raise _mistake("--top-p", f"{top_p:g} must be above 0 and at most 1, which keeps all tokens")
    if do_sample:
        return {
            "do_sample": True,
            "temperature": TEMPERATURE if temperature is None else temperature,
            "top_k": top_k or 0,
            "top_p": TOP_P if top_p is None else top_p,
        }
    for option, value in (("--temperature", temperature), ("--top-k", top_k), ("--top-p", top_p)):
        if value is not None:
            raise _mistake(option, f"{value:g} is for sampling; leave it out, or give --sample")
    return {"do_sample": False}


def _streams(wanted: bool | None, num_beams: int, batch_size: int, as_json: bool) -> bool:
    """Whether to show text as it is generated; refuses it if texts are known only when finished."""
    obstacles = {
        f"--num-beams {num_beams}": num_beams > 1,
        f"--batch-size {batch_size}": batch_size > 1,
        "--json": as_json,
    }
    for option, stands in obstacles.items():
        if wanted and stands:
            raise _mistake("--stream", f"with {option} texts are shown when finished; leave out one of the two")
    return not any(obstacles.values()) if wanted is None else wanted


def _check_lookup(prompt_lookup: int | None, num_beams: int, batch_size: int) -> None:
    for option, value in (("--num-beams", num_beams), ("--batch-size", batch_size)):
        if prompt_lookup is not None and value > 1:
            raise _mistake(
                "--prompt-lookup",
                f"{prompt_lookup} works on one text at a time; leave out --prompt-lookup or {option} {value}",
            )


def _gather(arguments: list[str], whole: bool) -> list[str]:
    """The prompts of the command line and of stdin; refuses empty ones."""
    if whole and arguments and STDIN not in arguments:
        raise _mistake("--whole", f"is about stdin, which no prompt stands for; add '{STDIN}', or leave --whole out")
    for argument in arguments:
        if not argument.strip():
            raise typer.BadParameter(f"{argument!r} is empty; give a word to continue", param_hint="PROMPT")
    return gather_texts(arguments, metavar="PROMPT", example=EXAMPLE, kind="prompt", whole=whole)


def _mistake(option: str, message: str) -> typer.BadParameter:
    return typer.BadParameter(message, param_hint=repr(option))


def _stream(generator: Generator, batch: list[Prompt]) -> None:
    typer.secho(batch[0].text, bold=True, nl=False)
    try:
        generator.run(batch, write=lambda text: typer.echo(text, nl=False))
    finally:
        typer.echo()


def _print_texts(generator: Generator, batch: list[Prompt]) -> None:
    for index, (prompt, generated) in enumerate(_finished(generator, batch)):
        if index:
            typer.echo()
        typer.secho(prompt.text, bold=True, nl=False)
        typer.echo(generated.text)


def _print_json(generator: Generator, batch: list[Prompt]) -> None:
    for prompt, generated in _finished(generator, batch):
        answer = {
            "prompt": prompt.text,
            "text": generated.text,
            "tokens": generated.tokens,
            "seconds": round(generated.seconds, 6),
            "tokens_per_second": round(generated.tokens / generated.seconds, 3),
        }
        typer.echo(json.dumps(answer, ensure_ascii=False))


def _finished(generator: Generator, batch: list[Prompt]) -> zip[tuple[Prompt, Generated]]:
    with spinner("Generating"):
        return zip(batch, generator.run(batch))
