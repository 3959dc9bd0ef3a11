"""A report of what a model has learnt: one HTML file that loads nothing, and its numbers as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from . import figures
from .cost import Cost, growth_exponent
from .figures import INK, MINUS, Picture, short_count
from .inspection import CONFIG_FIELDS, HORIZON, PARTS, EmaMemory, ParameterCount, Side
from .page import PAGE
from .reading import LayerReading, Reading

KINDS = {
    "MegaModel": "a model without a head",
    "MegaForMaskedLM": "a masked language model",
    "MegaForCausalLM": "a causal language model",
    "MegaForSequenceClassification": "a classifier of sequences",
    "MegaForAudioClassification": "a classifier of sequences of values",
    "MegaForTokenClassification": "a classifier of tokens",
    "MegaForMultipleChoice": "a model for multiple choice",
    "MegaForQuestionAnswering": "a model for question answering",
    "MegaForSequencePairClassification": "a classifier of pairs of sequences",
    "MegaSeq2SeqModel": "an encoder-decoder without a head",
    "MegaForConditionalGeneration": "an encoder-decoder from text to text",
}


@dataclass(frozen=True)
class Inspection:
    """The contents of a report.

    Args:
        name: The model's name.
        architecture: Its class.
        parameters: Counts that add up to all it has.
        sides: The weights of its Mega, or of its encoder and decoder.
        reading: The record of reading a text; None if it did not read one.
        unread: Why it did not read a text.
        costs: Time and memory by length; None if not measured.
        surroundings: Versions and devices: title -> value.
    """

    name: str
    architecture: str
    parameters: list[ParameterCount]
    sides: list[Side]
    reading: Reading | None
    unread: str | None
    costs: list[Cost] | None
    surroundings: dict[str, str]

    @property
    def total(self) -> int:
        """The number of parameters."""
        return sum(each.count for each in self.parameters)


@dataclass
class Section:
    """A section of the page: its HTML, and the pictures in it."""

    anchor: str
    title: str
    html: list[str] = dataclasses.field(default_factory=list)
    pictures: list[Picture] = dataclasses.field(default_factory=list)

    def say(self, *paragraphs: str) -> None:
        """Adds paragraphs of plain text."""
        self.html += [f"<p>{escape(paragraph)}</p>" for paragraph in paragraphs]

    def explain(self, text: str) -> None:
        """Adds a paragraph on how to read the next part."""
        self.html.append(f'<p class="how"><strong>How to read it.</strong> {escape(text)}</p>')

    def head(self, title: str) -> None:
        """Adds a heading, if there is a title."""
        if title:
            self.html.append(f"<h3>{escape(title[0].upper() + title[1:])}</h3>")

    def show(self, picture: Picture, caption: str) -> None:
        """Adds a picture whose text has the colour of the page."""
        self.pictures.append(picture)
        svg = picture.svg.replace(INK, "currentColor")
        size = f"min-width: {36 * picture.width:.1f}rem; max-width: {54 * picture.width:.1f}rem"
        svg = svg.replace("<svg", f'<svg style="{size}"', 1)
        self.html.append(f'<figure><div class="wide">{svg}</div><figcaption>{escape(caption)}</figcaption></figure>')

    def tabulate(self, header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1, fold: str = "") -> None:
        """Adds a table whose first `texts` columns are text and the others numbers; folded under a summary line, if
        given.
        """

        def row(cells: Sequence[str], tag: str) -> str:
            kinds = [""] * texts + [' class="number"'] * (len(cells) - texts)
            return f"<tr>{''.join(f'<{tag}{kind}>{escape(cell)}</{tag}>' for cell, kind in zip(cells, kinds))}</tr>"

        body = "".join(row(each, "td") for each in rows)
        table = f'<div class="wide"><table><thead>{row(header, "th")}</thead><tbody>{body}</tbody></table></div>'
        if fold:
            table = f"<details><summary>{escape(fold)}</summary>{table}</details>"
        self.html.append(table)


def sections_of(inspection: Inspection, tell: Callable[[str], None] = lambda _: None) -> list[Section]:
    """The sections of a report, with their pictures; `tell` is called with the title of each."""
    sections = []
    for anchor, title, fill in (
        ("model", "The model", _model),
        ("kernels", "EMA kernels", _kernels),
        ("half-lives", "Half-lives", _half_lives),
        ("position-biases", "Position biases", _biases),
        ("reading", "Gates and attention on a text", _reading),
        ("costs", "Time and memory by length", _costs),
    ):
        tell(title)
        section = Section(anchor, title)
        fill(section, inspection)
        sections.append(section)
    return sections


def render(inspection: Inspection, sections: Sequence[Section]) -> str:
    """The page."""
    contents = "".join(f'<li><a href="#{each.anchor}">{escape(each.title)}</a></li>' for each in sections)
    body = "".join(
        f'<section id="{each.anchor}"><h2>{escape(each.title)}</h2>{"".join(each.html)}</section>' for each in sections
    )
    facts = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in highlights(inspection))
    made = "; ".join(f"{title}: {value}" for title, value in inspection.surroundings.items())
    return PAGE.substitute(
        title=escape(inspection.name),
        kind=escape(f"{inspection.architecture}, {KINDS.get(inspection.architecture, 'a model')}"),
        highlights=facts,
        contents=contents,
        sections=body,
        made=escape(made),
    )


def as_json(inspection: Inspection) -> dict[str, Any]:
    """The numbers of the report, without matrices of weights; null for a half-life beyond the horizon."""
    return {**_plain(inspection), "total_parameters": inspection.total, "half_life_horizon": HORIZON}


def highlights(inspection: Inspection) -> list[tuple[str, str]]:
    """The main facts as titles and values, for the head of the page and for a terminal."""
    shapes = [
        f"{side.config['num_hidden_layers']} {_plural(side.config['num_hidden_layers'], 'layer')} of width "
        f"{side.config['hidden_size']:,}{f' ({side.name})' if side.name else ''}"
        for side in inspection.sides
    ]
    facts = [("parameters", f"{short_count(inspection.total)} in {' and '.join(shapes)}")]
    ema = sum(each.count for each in inspection.parameters if each.part == "EMA")
    facts.append(("of the EMA", f"{short_count(ema)} ({ema / inspection.total:.1%})"))
    for side in inspection.sides:
        every = np.concatenate([memory.half_lives for layer in side.layers for memory in layer.memory])
        of_side = f", {side.name}" if side.name else ""
        facts.append((f"half-life{of_side}", f"median {_tokens(_median(every))}, longest {_tokens(_longest(every))}"))
        if side.chunk is not None:
            reaches = np.concatenate([memory.reaches for layer in side.layers for memory in layer.memory])
            facts.append((f"reach beyond a chunk{of_side}", f"{_share_beyond(reaches, side.chunk):.1%} of channels"))
    for name, layers in (inspection.reading.sides if inspection.reading else {}).items():
        of_side = f", {name}" if name else ""
        updates = [layer.update.mean for layer in layers]
        facts.append((f"update gate{of_side}", _by_layer(updates, "{:.2f}")))
        distances = [layer.attention.distance or 0.0 for layer in layers]
        facts.append((f"distance of attention{of_side}", _by_layer(distances, "{:.0f}") + " tokens"))
    if inspection.costs:
        last = inspection.costs[-1]
        facts.append(("speed", f"{last.length / last.seconds:,.0f} tokens per second at {last.length:,} tokens"))
        exponent = _exponent(inspection.costs, [cost.seconds for cost in inspection.costs])
        if exponent is not None:
            facts.append(
                ("growth of time", f"length to the power {exponent:.2f}: {_growth(exponent).partition(',')[0]}")
            )
    return facts


def _model(section: Section, inspection: Inspection) -> None:
    section.say(
        f"{inspection.name} is {KINDS.get(inspection.architecture, 'a model')} with {inspection.total:,} parameters. "
        "A Mega block is an exponential moving average (EMA) of every channel, gated attention over the averaged "
        "input, and in most models a feed-forward sub-layer."
    )
    sides = inspection.sides
    header = ["field", "what it is", *(side.name or "value" for side in sides)]
    rows = [
        [name, meaning, *(_setting(side.config[name]) for side in sides)] for name, meaning in CONFIG_FIELDS.items()
    ]
    section.tabulate(header, rows, texts=2)
    section.head("Parameters")
    section.explain(
        "Each bar is a layer; further bars are the parts outside of the layers. Colours are parts. The EMA is small "
        "in every Mega model: it has a few numbers for each channel, while attention and feed-forward have matrices. "
        "Shared parameters count once, at their first place: a head tied to the embeddings adds no matrix."
    )
    section.show(figures.parameters(inspection.parameters), "Parameters by layer and part.")
    by_part = {part: sum(each.count for each in inspection.parameters if each.part == part) for part in PARTS}
    present = [part for part, count in by_part.items() if count]
    rows = [[part, f"{by_part[part]:,}", f"{by_part[part] / inspection.total:.1%}"] for part in present]
    section.tabulate(["part", "parameters", "share"], [*rows, ["all", f"{inspection.total:,}", "100.0%"]])
    places = dict.fromkeys((each.side, each.layer) for each in inspection.parameters)
    rows = []
    for side, layer in places:
        counts = {part: 0 for part in present}
        for each in inspection.parameters:
            if (each.side, each.layer) == (side, layer):
                counts[each.part] += each.count
        where = "outside of layers" if layer is None else f"layer {layer}"
        numbers = [f"{count:,}" if count else "" for count in counts.values()]
        rows.append([f"{side} {where}".strip(), *numbers, f"{sum(counts.values()):,}"])
    section.tabulate(["", *present, "all"], rows, fold="Parameters of every layer")


def _kernels(section: Section, inspection: Inspection) -> None:
    section.say(
        "Every channel is convolved with a kernel of its own, a sum of N decaying exponentials: "
        "k(t) = Σ γ β α (1 − α δ)ᵗ / √N at a lag of t tokens, with learnt γ, β, α and δ (1/√N is a constant)."  # noqa: RUF001
    )
    section.explain(
        "Each row of a heat map is a channel, the shortest-lived ones at the bottom. Columns are "
        "distances on a logarithmic scale: tokens before the current one on the left (forward EMA) and, in a "
        "bidirectional model, tokens after it on the right (backward EMA). Red weights add, blue ones subtract; each "
        "row is divided by its greatest weight. A row that changes colour compares near tokens with those further "
        "away, and a wide one averages over many."
    )
    for side in inspection.sides:
        section.head(side.name)
        section.show(figures.kernels(side), f"EMA kernels by layer{_of(side)}, sorted by half-life.")


def _half_lives(section: Section, inspection: Inspection) -> None:
    section.say(
        "How far a channel remembers: its half-life is the number of tokens, counted from the current one, that hold "
        "half of the absolute mass Σ|k(t)| of its kernel, linear between whole tokens; its reach is the number that "
        "hold 95%. The multiple of the current token that the layer also adds does not count. Each of a "
        "kernel's N exponentials halves after log(1/2) / log(1 − α δ) tokens."  # noqa: RUF001
    )
    section.explain(
        "A curve that rises late belongs to a layer with a long memory; where it crosses the dotted line, half of the "
        "mass lies within that number of tokens, on average over channels. Below, a thick line holds the middle half "
        "of the "
        "channels, a thin one 90% of them, and a tick is the longest. Attention in chunks sees only one chunk: older "
        "information passes through channels that reach beyond the chunk, layer after layer."
    )
    for side in inspection.sides:
        section.head(side.name)
        section.show(
            figures.memory_curves(side),
            f"Share of a kernel's absolute mass within a number of tokens{_of(side)}; means.",
        )
        section.show(figures.half_lives(side), f"Half-lives of channels and of single exponentials{_of(side)}.")
        header = ["layer", "EMA", "half-life: median", "longest", "reach: median", "longest"]
        header += ["single exponential: median", "longest"]
        if side.chunk is not None:
            header += [f"half-life beyond {side.chunk:,}", f"reach beyond {side.chunk:,}"]
        rows = [
            [f"{index + 1}", memory.direction, *_of_memory(memory, side.chunk)]
            for index, layer in enumerate(side.layers)
            for memory in layer.memory
        ]
        section.tabulate(header, rows, texts=2)
    section.say("Lengths are in tokens." + _beyond_a_chunk(inspection.sides))


def _biases(section: Section, inspection: Inspection) -> None:
    kinds = " and ".join(dict.fromkeys(side.config["relative_positional_bias"] for side in inspection.sides))
    section.say(
        "Attention adds to each score a number that depends on the distance of key and query alone. This model's "
        f"biases are {kinds}: a simple bias is a learnt number for each distance, a rotary one an inner product of "
        "two learnt vectors that are rotated with their positions."
    )
    section.explain(
        "A peak at 0 draws attention to the token itself and its neighbours, a slope to one side of "
        "it. A difference of 1 between two distances makes softmax weights differ by a factor of e. Distances below 0 "
        "are earlier tokens; a causal model has no others."
    )
    for side in inspection.sides:
        section.head(side.name)
        section.show(figures.position_biases(side), f"Position bias by layer{_of(side)}.")
        if side.layers[0].cross_position_bias is not None:
            caption = "Position bias of cross-attention, over the position in the source minus that in the target."
            section.show(figures.position_biases(side, cross_attention=True), caption)


def _reading(section: Section, inspection: Inspection) -> None:
    reading = inspection.reading
    if reading is None:
        section.say(f"The model did not read a text: {inspection.unread}.")
        return
    passage = reading.passage
    lengths = [f"{len(tokens):,} tokens{f' ({side})' if side else ''}" for side, tokens in passage.tokens.items()]
    section.say(f"The model read {passage.description}, {' and '.join(lengths)}.")
    for name, text in passage.texts.items():
        title = f"The text of the {name}" if name else "The text"
        section.html.append(f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>")
    section.explain(
        "The update gate is the share of a feature that the attention output replaces (1: all, 0: nothing). The reset "
        "gate is a factor of the attention output; near 0, that output is left out. In the heat maps each row is a "
        "token and shows which tokens it looks at, as shares that add up to 1 "
        "(weights of laplace and relu2 are divided by their sum); light colours are large shares. A light diagonal is "
        "attention to neighbours; a light column is a token that many others attend to. Lines are the borders of "
        "chunks. The effective number of tokens that a query attends to is e to the entropy of its shares; open "
        "circles are the "
        "mean distance if all visible tokens had equal shares."
    )
    for side in inspection.sides:
        layers = reading.sides[side.name]
        section.head(side.name)
        tokens = passage.tokens[side.name]
        section.show(figures.gates(side.name, layers), f"Activation of the gates by layer{_of(side)}.")
        section.show(
            figures.attention(side.name, [layer.attention for layer in layers], tokens, tokens, side.chunk),
            f"Attention by layer{_of(side)}.",
        )
        section.show(figures.attention_distances(side.name, layers), f"The distance of attention{_of(side)}.")
        cross = [layer.cross_attention for layer in layers if layer.cross_attention is not None]
        if cross:
            section.show(
                figures.attention(side.name, cross, tokens, passage.tokens["encoder"], cross_attention=True),
                "Cross-attention by layer: which tokens of the source (columns) the target (rows) attends to.",
            )
        header = ["layer", "update gate", "reset gate", "distance", "if it were even", "tokens attended to"]
        rows = [[f"{index + 1}", *_of_reading(layer)] for index, layer in enumerate(layers)]
        if cross:
            header += ["cross-attention: update gate", "reset gate", "tokens attended to"]
        section.tabulate(header, rows)


def _costs(section: Section, inspection: Inspection) -> None:
    costs = inspection.costs
    if costs is None:
        section.say("Not measured.")
        return
    section.say(
        "A forward pass of one row of random tokens through the blocks, without the head and without gradients, on "
        f"{inspection.surroundings['device']}. Time is that of the fastest pass, memory is the peak above the weights."
    )
    section.explain(
        "Both axes are logarithmic, so that linear growth is parallel to the dashed line and "
        "quadratic growth to the dotted one. Attention over the whole text is quadratic in the end; in chunks it is "
        "linear."
    )
    if len(costs) > 1:
        section.show(figures.costs(costs), "Time and memory of a forward pass by the length of its input.")
    header = ["tokens", "seconds", "tokens per second", "memory, MiB", "passes"]
    rows = [
        [
            f"{cost.length:,}",
            f"{cost.seconds:.3g}",
            f"{cost.length / cost.seconds:,.0f}",
            "" if cost.memory is None else f"{cost.memory / 2**20:,.1f}",
            f"{cost.passes}",
        ]
        for cost in costs
    ]
    section.tabulate(header, rows, texts=0)
    section.say(*growth_in_words(costs))


def growth_in_words(costs: Sequence[Cost]) -> list[str]:
    """Sentences on how time and memory grow with the length."""
    if len(costs) < 3:
        return ["Fewer than three lengths do not show how time and memory grow."]
    sentences = []
    memory = [float(cost.memory or 0) for cost in costs]
    for what, values in (("Time", [cost.seconds for cost in costs]), ("Memory", memory)):
        exponent = _exponent(costs, values)
        if exponent is not None:
            some = max(3, math.ceil(len(costs) / 2))
            sentences.append(
                f"{what} grows with the power {exponent:.2f} of the length from {costs[-some].length:,} to "
                f"{costs[-1].length:,} tokens: twice the length takes {2**exponent:.2f} times as much, which is "
                f"{_growth(exponent)}."
            )
    return sentences


def _exponent(costs: Sequence[Cost], values: Sequence[float]) -> float | None:
    return growth_exponent([cost.length for cost in costs], values)


def _growth(exponent: float) -> str:
    if exponent < 0.85:
        return "less than linear, since part of the work is the same for any length"
    if exponent < 1.2:
        return "linear"
    return "between linear and quadratic" if exponent < 1.8 else "quadratic"


def _of_memory(memory: EmaMemory, chunk: int | None) -> list[str]:
    cells = []
    for values in (memory.half_lives, memory.reaches, memory.component_half_lives):
        cells += [_number(_median(values)), _number(_longest(values))]
    if chunk is not None:
        cells += [f"{_share_beyond(values, chunk):.1%}" for values in (memory.half_lives, memory.reaches)]
    return cells


def _of_reading(layer: LayerReading) -> list[str]:
    cells = [f"{layer.update.mean:.3f}", f"{layer.reset.mean:.3f}".replace("-", MINUS)]
    cells += [f"{layer.attention.distance:.1f}", f"{layer.attention.even_distance:.1f}"]
    cells.append(f"{layer.attention.effective:.1f}")
    if layer.cross_update is not None and layer.cross_reset is not None and layer.cross_attention is not None:
        cells += [f"{layer.cross_update.mean:.3f}", f"{layer.cross_reset.mean:.3f}".replace("-", MINUS)]
        cells.append(f"{layer.cross_attention.effective:.1f}")
    return cells


def _beyond_a_chunk(sides: Sequence[Side]) -> str:
    sentences = ""
    for side in sides:
        if side.chunk is not None:
            every = np.concatenate([memory.reaches for layer in side.layers for memory in layer.memory])
            whose = f"of the {side.name}'s channels" if side.name else "of the channels"
            share = _share_beyond(every, side.chunk)
            sentences += f" {share:.1%} {whose} reach beyond a chunk of {side.chunk:,} tokens."
    return sentences


def _share_beyond(values: np.ndarray, chunk: int) -> float:
    known = values[~np.isnan(values)]
    return float((known > chunk).mean()) if known.size else 0.0


def _median(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if known.size else math.nan


def _longest(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.max()) if known.size else math.nan


def _number(value: float) -> str:
    """Tokens: 1.87, 36.1, 4,100."""
    if math.isnan(value):
        return "none"
    if math.isinf(value):
        return f"over {HORIZON:,}"
    return f"{value:.2f}" if value < 10 else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _tokens(value: float) -> str:
    return f"{_number(value)} tokens"


def _by_layer(values: Sequence[float], form: str) -> str:
    """The least and the greatest of a number by layer: "0.45 (layer 1) to 0.69 (layer 4)"."""
    if len(values) == 1:
        return form.format(values[0])
    low, high = int(np.argmin(values)), int(np.argmax(values))
    return f"{form.format(values[low])} (layer {low + 1}) to {form.format(values[high])} (layer {high + 1})"


def _setting(value: Any) -> str:
    if value is None or value == -1:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _plural(number: int, word: str) -> str:
    return word if number == 1 else f"{word}s"


def _of(side: Side) -> str:
    return f" of the {side.name}" if side.name else ""


def _plain(value: Any) -> Any:
    """Converts dataclasses and arrays to JSON values, with numbers to six digits."""
    if dataclasses.is_dataclass(value):
        kept: dict[str, Any] = {}
        for field in dataclasses.fields(value):
            form, content = field.metadata.get("json", True), getattr(value, field.name)
            if form == "quantiles":
                shares = (0, 5, 25, 50, 75, 95, 100)
                quantiles = np.quantile(np.minimum(content, HORIZON), np.array(shares) / 100)
                kept[field.name] = {f"{share}%": _plain(float(each)) for share, each in zip(shares, quantiles)}
            elif form:
                kept[field.name] = _plain(content)
        return kept
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
