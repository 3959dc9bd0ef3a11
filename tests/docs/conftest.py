"""What pages of the documentation find when their code runs: small models and data instead of those of the hub."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from mega_transformers.assets import bundled_model

HUB = {
    # as they are named in pages -> the fixture of a folder that stands in for them
    "mnaylor/mega-base-wikitext": "tiny_checkpoint",
    "BEE-spoke-data/mega-small-embed-synthSTS-16384-v1": "tiny_checkpoint",
    "BEE-spoke-data/mega-ar-126m-4k": "tiny_causal_checkpoint",
    "path/to/model": "tiny_causal_checkpoint",
    "my-classifier": "tiny_classifier",
    "path/to/assistant": "tiny_causal_checkpoint",
    "path/to/masked-model": "tiny_checkpoint",
    # what pages convert
    "en-de": "pair_checkpoint",
    "mega-mlm": "tiny_checkpoint",
    "wiki103": "tiny_causal_checkpoint",
}
FAIRSEQ = Path(__file__).parents[1] / "golden" / "ckpt" / "lm_prenorm_tied_chunk4.pt"
WORDS = 26  # of its dictionary
PROSE = "The captain of the ship gave an order, and the sailors obeyed.\n\n" * 40
PAIRS = "".join(f"There are {n} ships.\tHay {n} barcos.\tmanythings.org\n" for n in range(100))
RECIPE = """
name: mine
task: masked-lm
sequence_length: 32
data: [{name: A book, license: public domain, train: book.txt, validation: book.txt, documents: lines}]
tokenizer: {vocab_size: 270}
model: {hidden_size: 32, num_hidden_layers: 1, nffn_hidden_size: 48, shared_representation_size: 16}
training: {max_steps: 4, per_device_train_batch_size: 4}
"""
POSTS = "".join(
    f'{{"text": "{text} and so on", "label": {label}, "label_text": "{name}"}}\n'
    for text in ("The engine starts", "The rocket flies", "A wheel turns", "A star shines") * 3
    for label, name in enumerate(["rec.autos", "sci.space"])
)
FILES = {
    "SetFit/20_newsgroups/train.jsonl": POSTS,
    "SetFit/20_newsgroups/test.jsonl": POSTS,
    "a.txt": PROSE,
    "book.txt": PROSE * 6,
    "chapter.txt": PROSE,
    "data-bin/dict.txt": "".join(f"word{number} 1\n" for number in range(WORDS)),
    "test.txt": PROSE,
    "text.txt": PROSE,
    "prompts.txt": "The ship\nA whale\n",
    "sentences.txt": "The ship sailed from New York.\nA whale swam.\n",
    "texts.txt": "The <mask> sailed.\n",
    "everyday.txt": "The captain of the ship gave an order, and the sailors obeyed.\n" * 200,
    "words.txt": "ship\nwhale\n",
    "pairs.tsv": PAIRS,
    "more-pairs.tsv": PAIRS,
    "mine.yaml": RECIPE,
    "shelf/northanger-abbey.txt": " ".join(f"Captain {n} gave an order, and they obeyed." for n in range(600)),
    "shelf/persuasion.txt": " ".join(f"It is truth {n} that a speech must end." for n in range(600)),
    "rows.csv": "text,body,label\nThe ship sailed.,The ship sailed.,sea\nThe bill passed.,The bill passed.,law\n",
}
"""What commands name."""
STEPS = 3
"""Steps of a training whose page says more; a dry run takes the time of the last one."""
ROWS = 80
"""Rows of each role that a training has whose page says more."""
VOCABULARY = 270
"""Tokens of a tokenizer that a training makes."""


@pytest.fixture(scope="session")
def tiny_classifier(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """A classifier of two labels, with random weights."""
    from transformers import AutoConfig, AutoTokenizer

    from mega_transformers import MegaForSequenceClassification

    folder = tmp_path_factory.mktemp("classifier")
    labels = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    MegaForSequenceClassification(AutoConfig.from_pretrained(tiny_checkpoint, **labels)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pair_checkpoint() -> Path:
    return bundled_model("mega-g2p-1m")


@pytest.fixture
def reader(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of somebody who tries a page: models under their names on the hub, files that commands name."""
    for name, fixture in HUB.items():
        shutil.copytree(request.getfixturevalue(fixture), tmp_path / name)
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    shutil.copy(FAIRSEQ, tmp_path / "checkpoint_best.pt")
    monkeypatch.chdir(tmp_path)
    _short_trainings(monkeypatch)
    return tmp_path


def _short_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings take a few steps, on a few rows, with few tokens."""
    from transformers import TrainingArguments

    from mega_transformers.training import data, recipe

    by_role, read_recipe = data.by_role, recipe.read_recipe

    def some(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return {role: rows.take(ROWS) for role, rows in by_role(*args, **kwargs).items()}

    def few_tokens(*args: Any, **kwargs: Any) -> Any:
        read = read_recipe(*args, **kwargs)
        if read.tokenizer is None or read.tokenizer.vocab_size is None:
            return read
        return read.model_copy(update={"tokenizer": recipe.TokenizerRecipe(vocab_size=VOCABULARY)})

    monkeypatch.setattr(data, "by_role", some)
    monkeypatch.setattr(recipe, "read_recipe", few_tokens)

    made = TrainingArguments.__post_init__

    def short(self: TrainingArguments) -> None:
        self.max_steps = STEPS if self.max_steps < 0 else min(self.max_steps, STEPS)
        made(self)

    monkeypatch.setattr(TrainingArguments, "__post_init__", short)
