"""Compares the models that build.py wrote with those of this package, in float64: outputs, losses, gradients, caches.

    python contrib/transformers/compare.py PATH [CASES]

CASES is a folder of checkpoints and of what this package makes of them: `NAME/source` and `NAME/converted`. What the
conversion script makes of the first is compared with the second.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers.models
from safetensors.torch import load_file

SIZES = {
    "vocab_size": 31,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "intermediate_size": 12,
    "nffn_hidden_size": 8,
    "shared_representation_size": 4,
    "ema_projection_size": 2,
    "initializer_range": 0.3,
    "dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "nffn_activation_dropout_prob": 0.0,
}
CAUSAL = {"is_decoder": True, "bidirectional": False}
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"use_chunking": True, "chunk_size": 4, "attention_activation": "laplace", "truncation": 5},
    {
        "relative_positional_bias": "simple",
        "attention_activation": "relu2",
        "normalization_type": "rmsnorm",
        "normalize_before_mega": False,
        "normalize_before_ffn": False,
        "add_lm_hidden_dense_layer": False,
    },
    {
        "use_chunking": True,
        "chunk_size": 4,
        "relative_positional_bias": "simple",
        "normalization_type": "layernorm",
        "final_norm": True,
        "scale_embeddings": True,
        "normalize_embeddings": True,
        "embedding_size": 6,
        "tie_word_embeddings": False,
    },
    {"normalization_type": "batchnorm", "use_normalized_ffn": False, "add_token_type_embeddings": True},
    {"normalization_type": "rmsnorm", "legacy_unnormalized_rmsnorm": True, "truncation": 3},
)
HEADS = {
    "MegaModel": {},
    "MegaForSequenceClassification": {"num_labels": 3},
    "MegaForTokenClassification": {"num_labels": 3},
    "MegaForMultipleChoice": {},
    "MegaForQuestionAnswering": {},
}


def main(path: Path, cases: Path | None = None) -> None:
    transformers.models.__path__.append(str(path / "src/transformers/models"))
    # before this package's, which take the place of a `transformers.models.mega`
    modules = [
        importlib.import_module(f"transformers.models.mega.{name}_mega") for name in ("configuration", "modeling")
    ]
    theirs = SimpleNamespace(**{name: getattr(module, name) for module in modules for name in module.__all__})

    if cases is not None:
        for case in sorted(cases.iterdir()):
            compare_conversion(theirs, case)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    for fields in VARIANTS:
        compare_masked(theirs, fields)
        compare_causal(theirs, fields)
    for name, fields in HEADS.items():
        compare_head(theirs, name, fields)


def pair(theirs: Any, name: str, **fields: Any) -> tuple[Any, Any]:
    """A model of this package, and transformers' with the same weights."""
    import mega_transformers

    ours = getattr(mega_transformers, name)(mega_transformers.MegaConfig(**{**SIZES, **fields}))
    other = getattr(theirs, name)(theirs.MegaConfig(**{**SIZES, **fields}))
    other.load_state_dict(ours.state_dict(), strict=True)
    return ours.eval(), other.eval()


def inputs(length: int = 11) -> dict[str, torch.Tensor]:
    """Rows with padding on the left, on the right, on both sides, and without."""
    ids = torch.randint(3, SIZES["vocab_size"], (4, length))
    mask = torch.ones_like(ids)
    mask[0, :3] = mask[1, -4:] = mask[2, :1] = mask[2, -2:] = 0
    return {"input_ids": ids.masked_fill(mask == 0, 1), "attention_mask": mask}


def compare_masked(theirs: Any, fields: dict[str, Any]) -> None:
    ours, other = pair(theirs, "MegaForMaskedLM", **fields)
    given = inputs()
    labels = given["input_ids"].masked_fill(given["attention_mask"] == 0, -100)
    for batch in ({"input_ids": given["input_ids"]}, given):
        results = [model(**batch, labels=labels) for model in (ours, other)]
        real = batch.get("attention_mask", torch.ones_like(labels)).bool()
        equal_logits(ours, other, results, real)


def compare_causal(theirs: Any, fields: dict[str, Any]) -> None:
    ours, other = pair(theirs, "MegaForCausalLM", **fields, **CAUSAL)
    given = inputs()
    real = given["attention_mask"].bool()
    labels = given["input_ids"].masked_fill(~real, -100)
    results = [model(**given, labels=labels, use_cache=False) for model in (ours, other)]
    equal_logits(ours, other, results, real)
    with torch.no_grad():
        for batch in (given, {"input_ids": given["input_ids"]}):
            compare_steps(ours, other, batch)
        prompt = {name: x[[0, 2], :9] for name, x in given.items()}
        options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 1}
        for more in ({}, {"num_beams": 2}):
            generated = [model.generate(**prompt, **options, **more) for model in (ours, other)]
            assert torch.equal(*generated), f"{fields}: other tokens are generated"


def compare_steps(ours: Any, other: Any, batch: dict[str, torch.Tensor]) -> None:
    """What follows a cache: a few tokens, one by one, and a few more than a chunk."""
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    whole = ours(**batch, use_cache=False).logits
    for model in (ours, other):
        cache, start = None, 0
        for length in (3, 1, 1, 6):
            stop = start + length
            output = model(ids[:, start:stop], None if mask is None else mask[:, :stop], cache=cache, use_cache=True)
            cache = output.cache
            real = slice(None) if mask is None else mask[:, start:stop].bool()
            equal(output.logits[real], whole[:, start:stop][real])
            start = stop


def compare_head(theirs: Any, name: str, fields: dict[str, Any]) -> None:
    variants = [fields]
    if name == "MegaForSequenceClassification":
        variants += [fields | CAUSAL, fields | {"classifier_pooling": "mean", "classifier_head": "blocks"}]
    for each in variants:
        ours, other = pair(theirs, name, **each)
        given = inputs()
        if name == "MegaForMultipleChoice":
            given = {name: x.unflatten(0, (2, 2)) for name, x in given.items()}
        results = [model(**given).to_tuple() for model in (ours, other)]
        assert len(results[0]) == len(results[1]), name
        for left, right in zip(*results):
            if torch.is_tensor(left) and left.dim() == 3 and name != "MegaForMultipleChoice":
                left, right = (x[given["attention_mask"].bool()] for x in (left, right))
            if torch.is_tensor(left):
                equal(left, right)


def compare_conversion(theirs: Any, case: Path) -> None:
    for name, each in vars(theirs).items():  # as if registered; transformers may have made its namespace anew
        setattr(sys.modules["transformers"], name, each)
    script = importlib.import_module("transformers.models.mega.convert_mega_to_hf")
    convert = script.convert_transformers if (case / "source").is_dir() else script.convert_original
    model = convert(case / "source")
    expected = json.loads((case / "converted/config.json").read_text(encoding="utf-8"))
    assert expected["architectures"] == [type(model).__name__], case
    for name in set(theirs.MegaConfig.__annotations__) & set(expected):
        assert getattr(model.config, name) == expected[name], f"{case}: another {name}"
    state = model.state_dict()
    weights = load_file(case / "converted/model.safetensors")
    for name, weight in weights.items():
        assert torch.equal(state[name], weight), f"{case}: another {name}"
    tied = {weight.data_ptr() for name, weight in state.items() if name in weights}
    assert all(name in weights or weight.data_ptr() in tied for name, weight in state.items()), case


def equal(left: torch.Tensor, right: torch.Tensor) -> None:
    torch.testing.assert_close(right, left, rtol=1e-9, atol=1e-9)


def equal_logits(ours: Any, other: Any, results: list[Any], real: torch.Tensor) -> None:
    """Compares losses, logits of real tokens, and the gradients of some function of these."""
    # transformers computes losses in float32
    torch.testing.assert_close(results[1].loss, results[0].loss.float(), rtol=1e-6, atol=1e-6)
    logits = [each.logits[real] for each in results]
    equal(*logits)
    direction, gradients = torch.randn_like(logits[0]), []
    for model, some in zip((ours, other), logits):
        model.zero_grad()
        (some * direction).sum().backward()
        gradients.append({name: x.grad for name, x in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert (gradient is None) == (gradients[1][name] is None), f"only one has a gradient of {name}"
        if gradient is not None:
            equal(gradient, gradients[1][name])


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or not (Path(sys.argv[1]) / "src/transformers/models/mega").is_dir():
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:]))
