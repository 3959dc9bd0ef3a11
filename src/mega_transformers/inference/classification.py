"""Labels for texts and pairs of texts, and tags for words, for texts of any length."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from ..evaluation.batches import Advance
from ..training.tokenizer import put_space_before_words
from .encoding import MASK, Parts, TextModel, token_counts

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
WORD = re.compile(r"\w+(?:[-'\u2019.,]\w+)*|[^\w\s]")
"""A run of letters and digits, with hyphens, apostrophes, points and commas inside, or any other single character."""


@dataclass
class Classifier(TextModel):
    """A model for sequence classification of texts and pairs of texts.

    Args:
        model, tokenizer, cut: See `TextModel`.
    """

    @property
    def labels(self) -> list[str]:
        """Names of the classes, or of the numbers of a regression."""
        return [str(self.model.config.id2label[index]) for index in range(self.model.config.num_labels)]

    @property
    def problem(self) -> str:
        """`SINGLE`, `MULTI` or `REGRESSION`. If the configuration does not say, the number of labels decides."""
        config = self.model.config
        return config.problem_type or (REGRESSION if config.num_labels == 1 else SINGLE)

    @property
    def max_rows(self) -> int | None:
        """The most texts of a batch; 1 for a model without padding."""
        # without an id of padding, models take the last column for a text's last token
        config = self.model.config
        return 1 if config.model_type != "mega" and config.pad_token_id is None else None

    @torch.inference_mode()
    def scores(self, texts: Sequence[Parts], advance: Advance = lambda tokens: None) -> np.ndarray:
        """Scores of every label: (n, labels), float32.

        They are probabilities that add up to 1; with several labels per text, a probability for each; in regression,
        numbers.

        Args:
            texts: n texts or pairs.
            advance: Called with the number of tokens read.
        """
        _, batch = self.encoded(texts)
        logits = self.model(**batch).logits.float()
        advance(int(batch[MASK].sum()))
        if self.problem == SINGLE:
            logits = logits.softmax(dim=-1)
        elif self.problem == MULTI:
            logits = logits.sigmoid()
        return logits.cpu().numpy()


@dataclass(frozen=True)
class Word:
    """A word of a text with its tag.

    Args:
        word: The word.
        start: Its first character in the text.
        end: The character after its last one.
        tag: Its most likely tag.
        score: Probability of the tag.
    """

    word: str
    start: int
    end: int
    tag: str
    score: float


@dataclass
class Tagger(TextModel):
    """A model for token classification. A word has the tag of its first token, as in training.

    Args:
        model, tokenizer, cut: See `TextModel`; the tokenizer must be a fast one.
    """

    def __post_init__(self) -> None:
        put_space_before_words(self.tokenizer)

    def count(self, texts: Sequence[Parts]) -> list[int]:
        """Number of tokens of each text before it is cut, with special tokens.

        Args:
            texts: The texts.
        """
        return token_counts(self.tokenizer, [(_words(text),) for (text,) in texts], is_split_into_words=True)

    @torch.inference_mode()
    def tags(self, texts: Sequence[Parts], advance: Advance = lambda tokens: None) -> list[list[Word]]:
        """Words of each text with their tags. Words that were cut off are left out.

        Args:
            texts: n texts.
            advance: Called with the number of tokens read.
        """
        encoded, batch = self.encoded([(_words(text),) for (text,) in texts], is_split_into_words=True)
        scores, tags = self.model(**batch).logits.float().softmax(dim=-1).max(dim=-1)
        advance(int(batch[MASK].sum()))
        names = self.model.config.id2label
        found: list[list[Word]] = []
        for row, (text,) in enumerate(texts):
            matches = list(WORD.finditer(text))
            places = pairwise([None, *encoded.word_ids(row)])
            found.append([])
            for column, (before, word) in enumerate(places):
                if word not in (None, before):
                    tag, score = names[int(tags[row, column])], float(scores[row, column])
                    match = matches[word]
                    found[-1].append(Word(match[0], match.start(), match.end(), tag, score))
        return found


def _words(text: str) -> list[str]:
    return WORD.findall(text)
