"""Batches by length: every input once, bounded padding, results in the order of the inputs."""

from __future__ import annotations

import random
import time
from itertools import pairwise

import pytest

from mega_transformers.evaluation import progress
from mega_transformers.evaluation.batches import batches_by_length, by_length

LENGTHS = random.Random(0).choices(range(41), k=100)


@pytest.mark.parametrize(("max_tokens", "max_rows"), [(100, 7), (100, None), (1, None), (10_000, 30), (41, 1)])
def test_every_input_is_in_one_batch_of_bounded_size(max_tokens: int, max_rows: int | None) -> None:
    batches = list(batches_by_length(LENGTHS, max_tokens, max_rows))
    assert sorted(index for batch in batches for index in batch) == list(range(100))
    assert [LENGTHS[index] for batch in batches for index in batch] == sorted(LENGTHS, reverse=True)
    for batch in batches:
        assert max_rows is None or len(batch) <= max_rows
        assert len(batch) == 1 or max(LENGTHS[index] for index in batch) * len(batch) <= max_tokens
    # no batch could take the next input too
    for batch, following in pairwise(batches):
        longest = max(1, *(LENGTHS[index] for index in batch), LENGTHS[following[0]])
        assert len(batch) == max_rows or (len(batch) + 1) * longest > max_tokens


def test_results_come_in_the_order_of_the_inputs() -> None:
    told: list[int] = []

    def compute(batch, advance):
        advance(sum(LENGTHS[index] for index in batch))
        told.extend(batch)
        return [index * index for index in batch]

    assert by_length(compute, LENGTHS, 100) == [index * index for index in range(100)]
    assert told != sorted(told)
    assert by_length(compute, [], 100) == []


def test_the_bar_appears_before_the_first_step_is_done(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(progress, "SECONDS_WITHOUT_BAR", 0.01)
    for terminal in ("0", "1"):
        monkeypatch.setenv("TTY_COMPATIBLE", terminal)
        with progress.LateBar("Embedding", 10):
            time.sleep(0.3)
        captured = capsys.readouterr()
        assert ("Embedding" in captured.err) == (terminal == "1") and captured.out == ""
