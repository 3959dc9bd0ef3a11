"""Adaptive input and softmax in models: log-probabilities, losses, generation, files, and what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from tiny import CAUSAL, tiny_config
from transformers import AutoModel, AutoModelForCausalLM

from mega_transformers import (
    MegaForCausalLM,
    MegaForMaskedLM,
    MegaForSequenceClassification,
    MegaModel,
    MegaSeq2SeqConfig,
)
from mega_transformers.layers import MegaAdaptiveEmbedding

BOTH = {
    "adaptive_cutoffs": [9, 20],
    "adaptive_input": True,
    "adaptive_softmax": True,
    "adaptive_input_factor": 2,
    "adaptive_softmax_factor": 2,
}
TIED = {**BOTH, "tie_adaptive_weights": True}
PROJECTIONS = {**TIED, "tie_adaptive_projections": True}
FORMS = {
    "apart": BOTH,
    "tied": TIED,
    "projections": PROJECTIONS,
    "narrow": {**PROJECTIONS, "embedding_size": 6, "scale_embeddings": True, "add_lm_hidden_dense_layer": False},
    "input": {**BOTH, "adaptive_softmax": False},
    "softmax": {**BOTH, "adaptive_input": False, "adaptive_softmax_factor": 1.5},
}
SOFTMAX = [form for form in FORMS if form != "input"]
NO_DROPOUT = dict.fromkeys(
    ("dropout_prob", "hidden_dropout_prob", "attention_probs_dropout_prob", "nffn_activation_dropout_prob"), 0.0
)
V = 31


def make(form: str, **fields) -> MegaForCausalLM:
    sizes = {"initializer_range": 0.5, "eos_token_id": None, "use_chunking": True, "chunk_size": 4}
    torch.manual_seed(0)
    return MegaForCausalLM(tiny_config(**{**CAUSAL, **sizes, **NO_DROPOUT, **FORMS[form], **fields})).eval()


def some_ids(*shape: int) -> torch.Tensor:
    return torch.randint(2, V, shape, generator=torch.Generator().manual_seed(1))


def shifted_loss(logits: torch.Tensor, labels: torch.Tensor, **kwargs) -> torch.Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), **kwargs)


# -- logits and loss


@pytest.mark.parametrize("form", FORMS)
def test_loss_is_the_cross_entropy_of_the_logits(form):
    model, ids = make(form).double(), some_ids(3, 13)
    labels = ids.masked_fill(ids % 3 == 0, -100)
    outputs = model(ids, labels=labels)
    if model.config.adaptive_softmax:
        torch.testing.assert_close(outputs.logits.exp().sum(-1), torch.ones(3, 13, dtype=torch.float64))
    torch.testing.assert_close(outputs.loss, shifted_loss(outputs.logits, labels))
    torch.testing.assert_close(outputs.logits, model(ids).logits)
    summed = shifted_loss(outputs.logits, labels, reduction="sum")
    torch.testing.assert_close(model(ids, labels=labels, num_items_in_batch=7).loss, summed / 7)
    torch.testing.assert_close(model(ids, labels=labels, num_items_in_batch=torch.tensor(7)).loss, summed / 7)


@pytest.mark.parametrize("form", SOFTMAX)
def test_training_has_a_loss_of_the_same_gradients_and_no_logits(form):
    model, ids = make(form).double(), some_ids(3, 13)
    shifted_loss(model(ids).logits, ids).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    outputs = model.train()(ids, labels=ids)
    assert outputs.logits is None
    outputs.loss.backward()
    torch.testing.assert_close({name: p.grad for name, p in model.named_parameters()}, expected)
    assert model(ids).logits.shape == (3, 13, V)


def test_every_weight_gets_a_gradient_without_a_rare_word():
    """Whoever averages gradients over devices waits for them."""
    model = make("apart").train()
    ids = torch.full((2, 5), 3)
    model(ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_loss_function_of_one_s_own_is_given_log_probabilities():
    model = make("tied").train()
    model.loss_function = lambda logits, labels, vocab_size, **kwargs: logits.exp().sum() + vocab_size
    ids = some_ids(2, 5)
    torch.testing.assert_close(model(ids, labels=ids).loss.item(), 10.0 + V)


def test_dropout_of_the_softmax():
    ids = some_ids(2, 9)
    model = make("tied", adaptive_softmax_dropout_prob=0.5)
    expected = make("tied")(ids, labels=ids)
    actual = model(ids, labels=ids)
    assert torch.equal(actual.loss, expected.loss) and torch.equal(actual.logits, expected.logits)
    model.train()
    assert len({model(ids, labels=ids).loss.item() for _ in range(3)}) == 3


@pytest.mark.parametrize("form", ["apart", "narrow"])
def test_positions_and_embeddings_as_in_any_causal_model(form):
    model, ids = make(form), some_ids(2, 11)
    with torch.no_grad():
        whole = model(ids).logits
        torch.testing.assert_close(model(ids, logits_to_keep=3).logits, whole[:, -3:])
        torch.testing.assert_close(model(ids, logits_to_keep=torch.tensor([2, 4])).logits, whole[:, [2, 4]])
        embeddings = model.get_input_embeddings()(ids)
        assert embeddings.shape == (2, 11, 8)
        torch.testing.assert_close(model(inputs_embeds=embeddings).logits, whole)


@pytest.mark.parametrize("form", ["tied", "narrow"])
def test_half_precision(form):
    model, ids = make(form), some_ids(2, 11)
    expected = model(ids, labels=ids)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(ids, labels=ids)
    half = model.to(torch.bfloat16)
    rounded = half(ids, labels=ids)
    for outputs in (mixed, rounded):
        assert outputs.logits.dtype == outputs.loss.dtype == torch.float32
        torch.testing.assert_close(outputs.loss, expected.loss, rtol=0.1, atol=0)
        torch.testing.assert_close(outputs.logits.exp().sum(-1), torch.ones(2, 11), rtol=0, atol=1e-5)
    rounded.loss.backward()
    assert all(p.grad.isfinite().all() for p in half.parameters())


@pytest.mark.parametrize("form", ["apart", "projections"])
def test_gradient_checkpointing_changes_nothing(form):
    results = []
    for checkpointing in (False, True):
        model, ids = make(form).double().train(), some_ids(2, 11)
        if checkpointing:
            model.gradient_checkpointing_enable()
        loss = model(ids, labels=ids).loss
        loss.backward()
        results.append((loss, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(results[0], results[1])


def test_compiles_in_one_graph_with_its_loss():
    torch.compiler.reset()
    model, ids = make("projections", num_hidden_layers=1), some_ids(2, 11)
    expected = model(ids, labels=ids, use_cache=False)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
    actual = compiled(ids, labels=ids, use_cache=False)
    torch.testing.assert_close(actual.loss, expected.loss)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["apart", "narrow"])
def test_offloaded_weights_are_brought(form):
    accelerate = pytest.importorskip("accelerate")
    model, ids = make(form), some_ids(2, 11)
    expected = model(ids, labels=ids)
    for part in (model.lm_head, model.mega.embedding_layer):
        accelerate.cpu_offload(part, execution_device=torch.device("cpu"))
    assert model.lm_head.get_parameter("tail.0.2.weight").is_meta
    offloaded = model(ids, labels=ids, use_cache=False)
    torch.testing.assert_close(offloaded.logits, expected.logits)
    torch.testing.assert_close(offloaded.loss, expected.loss)


# -- padding, caches, generation


def padded(rows: list[torch.Tensor], left: bool) -> dict[str, torch.Tensor]:
    width = max(len(row) for row in rows)
    ids, mask = torch.full((len(rows), width), 1), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        own = slice(width - len(row), None) if left else slice(len(row))
        ids[i, own], mask[i, own] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_padding_changes_nothing(form, left):
    model = make(form).double()
    rows = [some_ids(n)[:n] for n in (3, 17, 10)]
    batch = padded(rows, left)
    with torch.no_grad():
        logits = model(**batch).logits
        for i, row in enumerate(rows):
            real = batch["attention_mask"][i].bool()
            torch.testing.assert_close(logits[i, real], model(row[None]).logits[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("form", ["apart", "narrow"])
def test_pieces_with_a_cache_give_what_the_whole_gives(form):
    model, ids = make(form).double(), some_ids(2, 13)
    with torch.no_grad():
        whole, cache, parts = model(ids, use_cache=False).logits, None, []
        for piece in ids.split([1, 4, 6, 2], dim=1):
            outputs = model(piece, cache=cache, use_cache=True)
            cache = outputs.cache
            parts.append(outputs.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_generation(form):
    """Greedy over a padded batch, beams, sampling and looking ahead, with a cache and without."""
    model = make(form).double()
    rows = [some_ids(n)[:n] for n in (3, 9)]
    batch = padded(rows, left=True)
    options = {"max_new_tokens": 7, "pad_token_id": 1}
    expected = []
    with torch.no_grad():
        for row in rows:
            ids = row[None]
            for _ in range(7):
                ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
            expected.append(ids[0, len(row) :].tolist())
    for how in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
        assert model.generate(**batch, **options, **how)[:, 9:].tolist() == expected
    looked_up = model.generate(rows[1][None], **options, prompt_lookup_num_tokens=3)
    assert looked_up[0, 9:].tolist() == expected[1]
    for search in ({"num_beams": 3}, {"do_sample": True, "top_p": 0.9}, {"num_beams": 2, "do_sample": True}):
        found = []
        for use_cache in (True, False):
            torch.manual_seed(5)
            found.append(model.generate(**batch, **options, **search, use_cache=use_cache))
        assert torch.equal(*found)


# -- weights and files


def test_initial_weights():
    model = make("tied", pad_token_id=10)
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, MegaAdaptiveEmbedding)
    assert [words.weight.shape for words, _ in embeddings.embeddings] == [(9, 8), (11, 4), (11, 2)]
    assert not embeddings(torch.tensor([10])).any()  # the second word of the second cluster
    assert all(row.any() for cluster in (0, 2) for row in embeddings.embeddings[cluster][0].weight)
    wide = tiny_config(**{**BOTH, "vocab_size": 4000, "adaptive_cutoffs": [1000, 2000], "hidden_size": 64})
    for (words, projection), width in zip(MegaModel(wide).get_input_embeddings().embeddings, (64, 32, 16)):
        assert words.weight.std().item() == pytest.approx(width**-0.5, rel=0.05)
        assert projection.weight.abs().max().item() == pytest.approx((6 / (64 + width)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("form", FORMS)
def test_saves_and_loads(tmp_path, form):
    model, ids = make(form), some_ids(2, 9)
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    trunk = AutoModel.from_pretrained(tmp_path)
    torch.testing.assert_close(trunk(ids).last_hidden_state, model.mega(ids).last_hidden_state)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        saved = set(file.keys())
    ties = loaded.all_tied_weights_keys
    assert saved == set(model.state_dict()) - set(ties)
    assert len(ties) == {"tied": 3, "projections": 5, "narrow": 5}.get(form, 0)
    assert all(loaded.get_parameter(own) is loaded.get_parameter(source) for own, source in ties.items())


def test_names_are_the_authors():
    names = {name for name in make("apart").state_dict() if "embeddings" in name or "lm_head" in name}
    embeddings = "mega.embedding_layer.word_embeddings.embeddings"
    assert names == {f"{embeddings}.{cluster}.{part}.weight" for cluster in range(3) for part in (0, 1)} | {
        "lm_head.head.weight",
        *(f"lm_head.tail.{tail}.{part}.weight" for tail in (0, 1) for part in (0, 2)),
    }
    own = {name for name in make("narrow").state_dict() if "lm_head.head" in name}
    heads = ("word_proj.0", "word_proj.1", "class_proj")
    assert own == {f"lm_head.head.{part}.weight" for part in heads}


def test_a_trunk_of_its_own_gets_a_fresh_head(tmp_path):
    make("apart").mega.save_pretrained(tmp_path)
    loaded = MegaForCausalLM.from_pretrained(tmp_path)
    limit = (6 / (11 + 8)) ** 0.5
    assert 0.5 * limit < loaded.lm_head.head.weight.abs().max().item() <= limit


def test_adaptive_input_serves_other_models():
    config = tiny_config(**FORMS["input"])
    ids = some_ids(2, 9)
    assert MegaForMaskedLM(config)(ids, labels=ids).logits.shape == (2, 9, V)
    assert MegaForSequenceClassification(config)(ids).logits.shape == (2, 2)


# -- what is refused


@pytest.mark.parametrize("form", FORMS)
def test_a_vocabulary_in_bands_is_not_resized(form):
    model = make(form)
    with pytest.raises(ValueError, match=r"adaptive_(input|softmax)=True"):
        model.resize_token_embeddings(40)
    assert model.config.vocab_size == V


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"adaptive_cutoffs": None}, "adaptive_cutoffs=None must be the ids"),
        ({"adaptive_cutoffs": []}, r"adaptive_cutoffs=\[\] must be the ids"),
        ({"adaptive_cutoffs": [9, 9]}, r"adaptive_cutoffs=\[9, 9\] must be ascending"),
        ({"adaptive_cutoffs": [20, 9]}, "must be ascending, above 0 and below vocab_size=31"),
        ({"adaptive_cutoffs": [0, 9]}, "must be ascending, above 0"),
        ({"adaptive_cutoffs": [9, 32]}, "below vocab_size=31"),
        ({"adaptive_cutoffs": [31]}, "below vocab_size=31"),
        ({"adaptive_cutoffs": [9.5]}, "adaptive_cutoffs"),
        ({"adaptive_input": False, "adaptive_softmax": False}, "needs adaptive_input=True or adaptive_softmax=True"),
        ({"adaptive_input_factor": 4}, r"adaptive_input_factor=4 leaves no width.* 8 // 4\*\*2 is 0"),
        ({"adaptive_softmax_factor": 0.5}, "adaptive_softmax_factor=0.5 must be at least 1"),
        ({"embedding_size": 3}, r"leaves no width to the last of 3 clusters: 3 // 2\*\*2 is 0"),
        ({"tie_adaptive_projections": True}, "needs tie_adaptive_weights=True"),
        ({"tie_adaptive_weights": True, "adaptive_input": False}, "needs adaptive_input=True and adaptive_softmax"),
        ({"tie_adaptive_weights": True, "adaptive_softmax_factor": 1}, "needs equal factors"),
        ({"adaptive_softmax_dropout_prob": 1.0}, "adaptive_softmax_dropout_prob=1.0"),
    ],
)
def test_configurations_that_cannot_work(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**{**BOTH, **fields})


def test_a_cutoff_at_the_end_of_the_vocabulary_begins_no_band():
    config = tiny_config(**{**BOTH, "adaptive_cutoffs": [9, 31]})
    assert config.adaptive_clusters(8, 2) == [(9, 8), (22, 4)]


def test_words_are_tied_by_bands_or_not_at_all():
    assert not tiny_config(**BOTH, tie_word_embeddings=True).tie_word_embeddings
    assert not tiny_config(**FORMS["input"]).tie_word_embeddings


def test_other_models_have_no_adaptive_softmax():
    with pytest.raises(ValueError, match="only MegaForCausalLM has an adaptive softmax"):
        MegaForMaskedLM(tiny_config(**BOTH))
    with pytest.raises(ValueError, match=r"decoder: .*adaptive_cutoffs=\[9, 20\]"):
        MegaSeq2SeqConfig(decoder=tiny_config(**BOTH).to_dict(), share_embeddings=False, tie_word_embeddings=False)
