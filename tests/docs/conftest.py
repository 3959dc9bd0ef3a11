"""What pages of the documentation find when their code runs: small models and data instead of those of the hub."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

HUB = {
    # as they are named in pages -> the fixture of a folder that stands in for them
    "mnaylor/mega-base-wikitext": "tiny_checkpoint",
    "BEE-spoke-data/mega-small-embed-synthSTS-16384-v1": "tiny_checkpoint",
    "BEE-spoke-data/mega-ar-126m-4k": "tiny_causal_checkpoint",
    "path/to/model": "tiny_causal_checkpoint",
}
PROSE = "The captain of the ship gave an order, and the sailors obeyed.\n\n" * 40
FILES = {
    "a.txt": PROSE,
    "book.txt": PROSE,
    "chapter.txt": PROSE,
    "text.txt": PROSE,
    "prompts.txt": "The ship\nA whale\n",
    "sentences.txt": "The ship sailed from New York.\nA whale swam.\n",
    "texts.txt": "The <mask> sailed.\n",
    "rows.csv": "text,body,label\nThe ship sailed.,The ship sailed.,sea\nThe bill passed.,The bill passed.,law\n",
}
"""What commands name."""
STEPS = 2
"""Steps of a training whose page says more."""


@pytest.fixture
def reader(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of somebody who tries a page: models under their names on the hub, files that commands name."""
    for name, fixture in HUB.items():
        shutil.copytree(request.getfixturevalue(fixture), tmp_path / name)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    _short_trainings(monkeypatch)
    return tmp_path


def _short_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings take a few steps, on one batch each of evaluation."""
    from transformers import TrainingArguments

    made = TrainingArguments.__post_init__

    def short(self: TrainingArguments) -> None:
        self.max_steps = STEPS if self.max_steps < 0 else min(self.max_steps, STEPS)
        made(self)

    monkeypatch.setattr(TrainingArguments, "__post_init__", short)
