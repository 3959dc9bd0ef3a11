"""Model cards: what is there stays, what the hub needs is added, and its own library reads the result."""

from __future__ import annotations

import ast
import re

import pytest
from huggingface_hub import ModelCard

from mega_transformers.assets import BUNDLED_MODELS, bundled_model
from mega_transformers.publish import PublishError
from mega_transformers.publish.folder import model_classes
from mega_transformers.publish.hub_card import PIPELINE_TAGS, Facts, complete

SCORES = {
    "validation": {"model": {"accuracy": 0.5, "perplexity": 8.0, "tokens": 100}, "unigram": {"accuracy": 0.1}},
    "test": {"model": {"accuracy": 0.25, "cross_entropy": 2.0}},
}
MASKED = Facts("small", "me/small", "MegaForMaskedLM", mask_token="[MASK]", license="mit", base_model="me/base")
WRITTEN = """---
# by hand
license: cc-by-4.0
widget:
- text: "One <mask>."
pipeline_tag:
tags: []
---
# Mine

Text --- with a rule.

---
"""


def fields(text: str) -> dict:
    return ModelCard(text).data.to_dict()


def test_new_card():
    text, added = complete(None, MASKED)
    front = fields(text)
    assert set(added) == front.keys()
    assert front["library_name"] == "transformers" and front["pipeline_tag"] == "fill-mask"
    assert front["license"] == "mit" and front["base_model"] == "me/base" and front["mask_token"] == "[MASK]"
    assert "mega" in front["tags"]
    assert len(front["widget"]) >= 2 and all("[MASK]" in example["text"] for example in front["widget"])
    assert "model-index" not in front and "trust_remote_code" not in text
    assert 'pipeline("fill-mask", model="me/small")' in text and "import mega_transformers" in text


def test_card_that_is_there():
    text, added = complete(WRITTEN, Facts("small", "me/small", "MegaForMaskedLM", mask_token="<mask>"))
    assert added == ["library_name", "pipeline_tag", "mask_token"]
    head, _, body = text.removeprefix("---\n").partition("\n---\n")
    kept = [line for line in WRITTEN.split("---\n")[1].splitlines() if line != "pipeline_tag:"]
    assert head.splitlines()[: len(kept)] == kept
    assert body == WRITTEN.partition("\n---\n")[2]
    assert fields(text)["license"] == "cc-by-4.0" and fields(text)["pipeline_tag"] == "fill-mask"
    assert complete(text, Facts("small", "me/small", "MegaForMaskedLM", mask_token="<mask>")) == (text, [])


def test_text_without_front_matter():
    text, _ = complete("# Mine\n\nWords.\n", MASKED)
    assert text.endswith("---\n\n# Mine\n\nWords.\n") and fields(text)["license"] == "mit"


def test_scores_become_metrics():
    text, added = complete(None, Facts("small", "me/small", "MegaForMaskedLM", scores=SCORES))
    assert "model-index" in added and "mask_token" not in added
    found = {
        (each.dataset_split, each.metric_type): each.metric_value for each in ModelCard(text).data.eval_results or []
    }
    assert found == {("validation", "accuracy"): 0.5, ("validation", "perplexity"): 8.0, ("test", "accuracy"): 0.25}


@pytest.mark.parametrize("name", BUNDLED_MODELS)
def test_cards_of_bundled_models_stay(name):
    try:
        before = (bundled_model(name) / "README.md").read_text(encoding="utf-8")
    except ValueError:
        pytest.skip(f"{name} is not there")
    architecture = {"mega-prose-5m": "MegaForMaskedLM", "mega-prose-clm-3m": "MegaForCausalLM"}
    facts = Facts(
        name, name, architecture.get(name, "MegaForConditionalGeneration"), mask_token="<mask>", scores=SCORES
    )
    after, added = complete(before, facts)
    assert set(added) <= {"mask_token", "model-index"}
    assert after.partition("\n---\n")[2] == before.partition("\n---\n")[2]
    assert fields(before).items() <= fields(after).items()


@pytest.mark.parametrize("architecture", sorted(model_classes()))
@pytest.mark.parametrize("standalone", [False, True])
@pytest.mark.parametrize("has_tokenizer", [False, True])
def test_code_in_cards_names_what_there_is(architecture, standalone, has_tokenizer):
    facts = Facts("small", "me/small", architecture, "<mask>", has_tokenizer, standalone and "Mega" in architecture)
    text, _ = complete(None, facts)
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 1 + facts.standalone
    for block in blocks:
        for node in ast.parse(block).body:
            if isinstance(node, ast.ImportFrom):
                module = __import__(node.module or "", fromlist=["_"])
                assert all(hasattr(module, each.name) for each in node.names)
    assert PIPELINE_TAGS[architecture] == fields(text)["pipeline_tag"]
    if facts.standalone:
        assert "import mega_transformers" not in blocks[1]
        assert "trust_remote_code=True" in blocks[1] or "get_class_from_dynamic_module" in blocks[1]
        assert complete(text, facts)[0] == text


def test_language_and_base_model():
    facts = Facts("small", "me/small", "MegaForMaskedLM", mask_token="<mask>", language="en")
    text, added = complete(None, facts)
    assert "language" in added and fields(text)["language"] == "en"
    with pytest.raises(PublishError, match=r"--language says 'en', but README\.md says language: 'fr'"):
        complete("---\nlanguage: fr\n---\n", facts)


@pytest.mark.parametrize(
    ("front", "message"),
    [
        ("language: English", "language: 'English' is not valid; the hub takes codes of ISO 639"),
        ("language: [en, 5]", "language: 5 is not valid"),
        ("license: My License", "license: 'My License' is not valid"),
        ("pipeline_tag: Fill Mask", "pipeline_tag: 'Fill Mask' is not valid"),
        ("pipeline_tag: [fill-mask]", "pipeline_tag: ['fill-mask'] is not valid"),
        ("tags: [1]", "tags: 1 is not valid"),
        ("base_model: somewhere", "base_model: 'somewhere' is not valid; the hub takes ids of models"),
        ("datasets: [a b]", "datasets: 'a b' is not valid"),
        ("widget: One [MASK].", "widget: must be a list of examples"),
        (
            "widget:\n- text: One <mask>.",
            "widget: 'One <mask>.' must contain the tokenizer's mask token '[MASK]' exactly once",
        ),
        ("widget:\n- text: '[MASK] [MASK]'", "must contain the tokenizer's mask token '[MASK]' exactly once"),
        ("mask_token: <mask>", "mask_token: '<mask>' is not the tokenizer's mask token '[MASK]'"),
    ],
)
def test_front_matter_that_the_hub_would_refuse(front, message):
    facts = Facts("small", "me/small", "MegaForMaskedLM", mask_token="[MASK]")
    with pytest.raises(PublishError, match=re.escape(message)):
        complete(f"---\n{front}\n---\n", facts)


def test_a_widget_of_another_task_needs_no_mask():
    facts = Facts("small", "me/small", "MegaForMaskedLM", mask_token="[MASK]")
    front = "pipeline_tag: feature-extraction\nwidget:\n- text: Words."
    assert fields(complete(f"---\n{front}\n---\n", facts)[0])["widget"] == [{"text": "Words."}]


@pytest.mark.parametrize(
    ("text", "facts", "message"),
    [
        ("---\nlicense: cc0-1.0\n---\n", MASKED, "--license says 'mit', but README.md says license: 'cc0-1.0'"),
        ("---\na: [1\n---\n", MASKED, "is not valid YAML"),
        ("---\n- a\n- b\n---\n", MASKED, "must be a mapping of fields, but is a list"),
        ("---\nmodel-index:\n- name: x\n---\n", MASKED, "cannot read its front matter"),
    ],
)
def test_cards_that_cannot_be_read(text, facts, message):
    with pytest.raises(PublishError, match=re.escape(message)):
        complete(text, facts)
