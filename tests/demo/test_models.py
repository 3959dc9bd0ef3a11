"""Models for the page: what is wrong with them is a sentence, before any is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from mega_transformers import MegaConfig, MegaForSequenceClassification, MegaForTokenClassification
from mega_transformers.cli.loading import CAUSAL, CLASSIFIER, MASKED, PAIRS
from mega_transformers.cli.runtime import UserError
from mega_transformers.demo import models
from mega_transformers.demo.models import Served, load_models

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8, "nffn_hidden_size": 8}


def test_kinds_and_limits(served: list[Served]) -> None:
    assert [model.kind for model in served] == [MASKED, CAUSAL, PAIRS, CLASSIFIER]
    assert [model.limit for model in served] == [128, None, 64, 64]


def test_a_model_given_twice_is_loaded_once(tiny_checkpoint: Path) -> None:
    assert len(load_models([str(tiny_checkpoint)] * 2, "cpu", "auto")) == 1


def test_wrong_names_are_told_before_any_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "load_libraries", lambda: pytest.fail("loads"))
    with pytest.raises(UserError, match=r"the folder holds no config\.json, so it is not a model"):
        load_models(["mega-prose-5m", str(tmp_path)], "cpu", "auto")
    with pytest.raises(UserError, match="did you mean mega-prose-5m"):
        load_models(["mega-prose-5"], "cpu", "auto")


def test_a_head_without_a_tab(tmp_path: Path, tiny_checkpoint: Path) -> None:
    MegaForTokenClassification(MegaConfig(vocab_size=360, **SMALL)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(tmp_path)
    message = r"is a classifier of words \(MegaForTokenClassification\) and cannot fill masks or"
    with pytest.raises(UserError, match=message):
        load_models([str(tmp_path)], "cpu", "auto")


def test_a_regression(tmp_path: Path, tiny_checkpoint: Path) -> None:
    config = MegaConfig(vocab_size=360, num_labels=1, problem_type="regression", **SMALL)
    MegaForSequenceClassification(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="predicts a number"):
        load_models([str(tmp_path)], "cpu", "auto")


def test_a_folder_with_a_damaged_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot load the model"):
        load_models([str(tmp_path)], "cpu", "auto")
