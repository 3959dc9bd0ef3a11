"""The page: whole for every kind of model, without references to elsewhere, with unique ids and nothing unescaped."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from tiny import CAUSAL, SIZES, tiny_config

import mega_transformers
from mega_transformers import MegaModel, MegaSeq2SeqConfig
from mega_transformers.interpret import figures
from mega_transformers.interpret.cost import Cost
from mega_transformers.interpret.figures import Picture
from mega_transformers.interpret.inspection import count_parameters, inspect_weights, sides_of
from mega_transformers.interpret.reading import Passage, read, why_unreadable
from mega_transformers.interpret.report import (
    KINDS,
    Inspection,
    Section,
    as_json,
    highlights,
    render,
    sections_of,
)

NASTY = '<script>alert("&")</script> $x^2$ \x07'
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """What a page refers to, its ids and text; fails on tags that are not closed in their order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.tags: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            elif name in ("href", "xlink:href", "src", "srcset", "action", "data", "poster"):
                self.links.append(value)
            self.links += re.findall(r"url\(([^)]*)\)", value or "")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        self.links += re.findall(r"url\(([^)]*)\)|@import", data)

    def check(self) -> None:
        """Nothing is referred to but what is in the page, and that is there once."""
        assert len(self.ids) == len(set(self.ids))
        for link in self.links:
            assert link.startswith(("#", "data:image/png;base64,")), link
            assert not link.startswith("#") or link[1:] in self.ids, link
        assert "script" not in self.tags


def inspection_of(model, name: str = NASTY, unread: str | None = None, **fields) -> Inspection:
    sides = sides_of(model)
    random = torch.Generator().manual_seed(0)
    inputs = {
        side: torch.randn(1, 9, generator=random)
        if mega.config.input_type == "values"
        else torch.randint(3, 31, (1, 9), generator=random)
        for side, mega in sides.items()
    }
    passage = Passage("a text", inputs, dict.fromkeys(sides, NASTY), dict.fromkeys(sides, [NASTY] * 9))
    made = {
        "name": name,
        "architecture": type(model).__name__,
        "parameters": count_parameters(model),
        "sides": [inspect_weights(side, mega) for side, mega in sides.items()],
        "reading": read(model, passage) if unread is None else None,
        "unread": unread,
        "costs": [Cost(length, length / 1000, 2, length << 10) for length in (256, 512, 1024)],
        "surroundings": {"device": "a <CPU>"},
    }
    return Inspection(**{**made, **fields})


# those whose pictures are drawn
DRAWN = {
    "MegaForCausalLM": {**CAUSAL, "use_chunking": True, "chunk_size": 10, "relative_positional_bias": "simple"},
    "MegaForMaskedLM": {"truncation": 3, "attention_activation": "laplace", "use_chunking": True, "chunk_size": 4},
    "MegaForAudioClassification": {
        "input_type": "values",
        "attention_activation": "relu2",
        "use_normalized_ffn": False,
        "num_hidden_layers": 1,
    },
    "MegaForConditionalGeneration": {},
}


def model_of(kind: str):
    torch.manual_seed(0)
    model_class = getattr(mega_transformers, kind)
    if kind in ("MegaSeq2SeqModel", "MegaForConditionalGeneration"):
        return model_class(MegaSeq2SeqConfig(encoder=SIZES, decoder={**SIZES, "num_hidden_layers": 1}))
    return model_class(tiny_config(**DRAWN.get(kind, {})))


@cache
def report_of(kind: str) -> tuple[Inspection, list[Section], str]:
    """A report of the kind, drawn once for all tests."""
    inspection = inspection_of(model_of(kind))
    sections = sections_of(inspection)
    return inspection, sections, render(inspection, sections)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty pictures: drawing takes most of the time of a report."""
    for name in ("parameters", "kernels", "memory_curves", "half_lives", "position_biases", "gates", "attention"):
        monkeypatch.setattr(figures, name, lambda *_, **__: Picture("name", "", '<svg viewBox="0 0 504 9"></svg>'))
    for name in ("attention_distances", "costs"):
        monkeypatch.setattr(figures, name, lambda *_, **__: Picture("name", "", '<svg viewBox="0 0 504 9"></svg>'))


def test_kinds_are_all_there_are() -> None:
    classes = {name for name in mega_transformers.__all__ if name.startswith("Mega")}
    assert set(KINDS) == {name for name in classes if "Config" not in name and "PreTrained" not in name}


def check(inspection: Inspection, sections: list[Section], html: str) -> None:
    page = Page(html)
    page.check()
    text = "".join(page.texts)
    assert inspection.architecture in text
    assert f"{inspection.total:,}" in text
    assert page.tags.count("svg") == sum(len(section.pictures) for section in sections) > 0
    assert [link[1:] for link in page.links[: len(sections)]] == [section.anchor for section in sections]
    json.dumps(as_json(inspection), allow_nan=False)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in DRAWN])
def test_every_kind_makes_a_report(kind: str, undrawn: None) -> None:
    check(*report_of.__wrapped__(kind))


@pytest.mark.parametrize("kind", DRAWN)
def test_some_kinds_with_pictures(kind: str) -> None:
    check(*report_of(kind))


def test_text_is_escaped() -> None:
    _, _, html = report_of("MegaForConditionalGeneration")
    assert "<script" not in html
    texts = "".join(Page(html).texts)
    assert texts.count(NASTY) == 5  # title, heading, first sentence, and the text of each side
    assert "a <CPU>" in texts


def test_pictures_are_files_of_their_own() -> None:
    inspection, sections, _ = report_of("MegaForConditionalGeneration")
    pictures = {picture.name: picture for section in sections for picture in section.pictures}
    assert len(pictures) == sum(len(section.pictures) for section in sections)
    assert {"encoder-kernels", "decoder-cross-position-biases", "decoder-cross-attention", "costs"} <= set(pictures)
    for picture in pictures.values():
        root = ElementTree.fromstring(picture.file())
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root.get("aria-label") == picture.description
        assert 0 < picture.width <= 1
        assert not root.findall(".//{*}metadata")
    assert figures.costs(inspection.costs) == pictures["costs"]


def test_tokens_are_named_where_they_are_few() -> None:
    (attention,) = [layer.attention for layer in report_of("MegaForConditionalGeneration")[0].reading.sides["decoder"]]
    picture = figures.attention("", [attention], ["a", "$x^2$", "</s>", " the", "\n", *"bcde"], ["<i>"] * 9)
    texts = {
        element.text for element in ElementTree.fromstring(picture.file()).iter("{http://www.w3.org/2000/svg}text")
    }
    assert {"a", "$x^2$", "</s>", "␣the", "\\n", "<i>"} <= texts


def test_many_layers_have_a_scale() -> None:
    (side,) = report_of("MegaForAudioClassification")[0].sides
    for layers in (figures._FEW_LAYERS, figures._FEW_LAYERS + 1):
        picture = figures.memory_curves(replace(side, layers=side.layers * layers))
        assert ("layer 2" in picture.svg) == (layers == figures._FEW_LAYERS)


def test_pictures_leave_matplotlib_as_it_was() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    figures.parameters(count_parameters(model_of("MegaModel")))
    assert dict(matplotlib.rcParams) == before


def test_numbers_in_the_json() -> None:
    model = model_of("MegaForCausalLM")
    inspection = inspection_of(model)
    with torch.no_grad():
        model.mega.layers[0].mega_layer.ema_gate.kernel_projection_matrix[0] = 0.0
        model.mega.layers[0].mega_layer.ema_gate.damping_factor[1] = -40.0
    numbers = as_json(inspection_of(model))
    assert numbers["total_parameters"] == model.num_parameters()
    memory = numbers["sides"][0]["layers"][0]["memory"][0]
    assert memory["half_lives"][:2] == [None, None]
    expected = inspection.sides[0].layers[0].memory[0].half_lives[2:]
    assert memory["half_lives"][2:] == pytest.approx(expected.tolist(), rel=1e-5)
    assert "kernels" not in numbers["sides"][0]["layers"][0]
    assert "shares" not in numbers["reading"]["sides"][""][0]["attention"]


def test_memories_without_end_are_told() -> None:
    model = model_of("MegaModel")
    with torch.no_grad():
        model.layers[1].mega_layer.ema_gate.damping_factor[1] = -40.0
    inspection = inspection_of(model)
    assert "longest over 65,536 tokens" in dict(highlights(inspection))["half-life"]
    ElementTree.fromstring(figures.half_lives(inspection.sides[0]).file())


def test_what_was_not_measured_is_said(undrawn: None) -> None:
    torch.manual_seed(0)
    model = MegaModel(tiny_config(**CAUSAL, add_cross_attention=True))
    inspection = inspection_of(model, unread=why_unreadable(model, None), costs=None)
    page = Page(render(inspection, sections_of(inspection)))
    page.check()
    text = "".join(page.texts)
    assert "did not read a text: it is a decoder that attends to an encoder" in text
    assert "Not measured." in text


def test_share_beyond_a_chunk() -> None:
    inspection, _, html = report_of("MegaForCausalLM")
    reaches = np.concatenate([memory.reaches for layer in inspection.sides[0].layers for memory in layer.memory])
    assert 0 < (reaches > 10).mean() < 1
    share = f"{(reaches > 10).mean():.1%}"
    assert dict(highlights(inspection))["reach beyond a chunk"] == f"{share} of channels"
    assert f"{share} of the channels reach beyond a chunk of 10 tokens." in html
