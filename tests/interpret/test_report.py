"""The page: whole for every kind of model, without references to elsewhere, with unique ids and nothing unescaped."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
import torch
from tiny import CAUSAL, SIZES, tiny_config

import mega_transformers
from mega_transformers import MegaModel, MegaSeq2SeqConfig
from mega_transformers.interpret import figures
from mega_transformers.interpret.cost import Cost
from mega_transformers.interpret.inspection import count_parameters, inspect_weights, sides_of
from mega_transformers.interpret.reading import Passage, read, why_unreadable
from mega_transformers.interpret.report import (
    KINDS,
    Inspection,
    as_json,
    growth_in_words,
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


def inspection_of(model, name: str = "tiny", unread: str | None = None) -> Inspection:
    sides = sides_of(model)
    random = torch.Generator().manual_seed(0)
    reading = None
    if unread is None:
        values = {side: mega.config.input_type == "values" for side, mega in sides.items()}
        inputs = {
            side: torch.randn(1, 9, generator=random)
            if values[side]
            else torch.randint(3, 31, (1, 9), generator=random)
            for side in sides
        }
        reading = read(
            model, Passage("a text", inputs, {side: NASTY for side in sides}, {side: [NASTY] * 9 for side in sides})
        )
    return Inspection(
        name=name,
        architecture=type(model).__name__,
        parameters=count_parameters(model),
        sides=[inspect_weights(side, mega) for side, mega in sides.items()],
        reading=reading,
        unread=unread,
        costs=[Cost(length, length / 1000, 2, length << 10) for length in (256, 512, 1024)],
        surroundings={"device": "a <CPU>"},
    )


KIND_FIELDS = {
    "MegaForCausalLM": {**CAUSAL, "use_chunking": True, "chunk_size": 4, "relative_positional_bias": "simple"},
    "MegaForMaskedLM": {"truncation": 3, "attention_activation": "laplace", "use_chunking": True, "chunk_size": 4},
    "MegaForTokenClassification": {"attention_activation": "relu2", "use_normalized_ffn": False},
    "MegaForAudioClassification": {"input_type": "values"},
}


def model_of(kind: str):
    torch.manual_seed(0)
    model_class = getattr(mega_transformers, kind)
    if "Seq2Seq" in kind or "Generation" in kind:
        return model_class(MegaSeq2SeqConfig(encoder=SIZES, decoder={**SIZES, "num_hidden_layers": 1}))
    return model_class(tiny_config(**KIND_FIELDS.get(kind, {})))


def test_kinds_are_all_there_are() -> None:
    classes = {name for name in mega_transformers.__all__ if name.startswith("Mega")}
    assert set(KINDS) == {name for name in classes if "Config" not in name and "PreTrained" not in name}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_makes_a_report(kind: str) -> None:
    inspection = inspection_of(model_of(kind))
    sections = sections_of(inspection)
    page = Page(render(inspection, sections))
    page.check()
    text = "".join(page.texts)
    assert kind in text
    assert f"{inspection.total:,}" in text
    assert page.tags.count("svg") == sum(len(section.pictures) for section in sections)
    assert [link[1:] for link in page.links[: len(sections)]] == [section.anchor for section in sections]
    json.dumps(as_json(inspection), allow_nan=False)


def test_text_is_escaped() -> None:
    inspection = inspection_of(model_of("MegaForConditionalGeneration"), name=NASTY)
    html = render(inspection, sections_of(inspection))
    page = Page(html)
    page.check()
    assert "<script" not in html
    assert "".join(page.texts).count(NASTY) >= 4  # title, heading, first sentence, text
    assert "a <CPU>" in "".join(page.texts)


def test_pictures_are_files_of_their_own() -> None:
    inspection = inspection_of(model_of("MegaForConditionalGeneration"))
    pictures = [picture for section in sections_of(inspection) for picture in section.pictures]
    names = [picture.name for picture in pictures]
    assert len(names) == len(set(names))
    assert {"encoder-kernels", "decoder-cross-position-biases", "decoder-cross-attention", "costs"} <= set(names)
    for picture in pictures:
        root = ElementTree.fromstring(picture.file())
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root.get("aria-label") == picture.description
        assert 0 < picture.width <= 1
        assert not root.findall(".//{*}metadata")
    again = {picture.name: picture.svg for section in sections_of(inspection) for picture in section.pictures}
    assert all(again[picture.name] == picture.svg for picture in pictures)


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
    Page(render(inspection, sections_of(inspection))).check()


def test_what_was_not_measured_is_said() -> None:
    torch.manual_seed(0)
    model = MegaModel(tiny_config(**CAUSAL, add_cross_attention=True))
    inspection = inspection_of(model, unread=why_unreadable(model, None))
    inspection = Inspection(**{**vars(inspection), "costs": None})
    page = Page(render(inspection, sections_of(inspection)))
    page.check()
    text = "".join(page.texts)
    assert "did not read a text: it is a decoder that attends to an encoder" in text
    assert "Not measured." in text
    assert growth_in_words([Cost(1, 1.0, 1, None)])
