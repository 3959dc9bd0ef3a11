"""`MegaForConditionalGeneration` as people use it: search, outputs, training, storage, bad input."""

import itertools
import math

import pytest
import torch
from tiny import CAUSAL, SIZES, tiny_config
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.trainer_pt_utils import LabelSmoother

from mega_transformers import MegaConfig, MegaForConditionalGeneration, MegaModel, MegaSeq2SeqConfig, MegaSeq2SeqModel

PAD, START, END = 1, 2, 2


def seq2seq_config(encoder=None, decoder=None, **fields) -> MegaSeq2SeqConfig:
    return MegaSeq2SeqConfig(encoder={**SIZES, **(encoder or {})}, decoder={**SIZES, **(decoder or {})}, **fields)


def make_model(seed=0, **kwargs) -> MegaForConditionalGeneration:
    torch.manual_seed(seed)
    model = MegaForConditionalGeneration(seq2seq_config(**kwargs)).double().eval()
    with torch.no_grad():  # sharper than fresh models, so that searches have something to find
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def sources(rows=3, length=7, vocabulary=31, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocabulary, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, :2], mask[-1, 4:] = 0, 0
    return ids, mask


CONFIGURATIONS = {
    "softmax-rotary": {},
    "laplace-simple-chunks": {
        "encoder": {"use_chunking": True, "chunk_size": 3, "attention_activation": "laplace"},
        "decoder": {
            "use_chunking": True,
            "chunk_size": 2,
            "attention_activation": "laplace",
            "relative_positional_bias": "simple",
            "max_positions": 40,
        },
    },
    "sizes-of-their-own": {
        "encoder": {"hidden_size": 12, "vocab_size": 40, "num_hidden_layers": 1, "final_norm": True},
        "decoder": {"attention_activation": "relu2", "truncation": 3, "final_norm": True},
        "share_embeddings": False,
    },
}


# --- search


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("use_cache", [True, False])
def test_beam_search_finds_what_brute_force_finds(length_penalty, use_cache):
    """With a beam for every sequence, beam search is exhaustive: its best ones are the best of all."""
    vocabulary, steps = 5, 4
    sizes = {"vocab_size": vocabulary, "num_hidden_layers": 1}
    model = make_model(3, encoder=sizes, decoder=sizes)
    ids, mask = sources(2, 5, vocabulary)
    scores = [{}, {}]
    for words in itertools.product(range(vocabulary), repeat=steps):
        if END in words:
            words = words[: words.index(END) + 1]
        for row in range(2):
            if words in scores[row]:
                continue
            target = torch.tensor([[START, *words]])
            with torch.no_grad():
                logits = model(ids[row : row + 1], attention_mask=mask[row : row + 1], decoder_input_ids=target).logits
            steps_of = logits.log_softmax(-1)[0, : len(words)]
            total = sum(steps_of[t, word].item() for t, word in enumerate(words))
            scores[row][words] = total / len(words) ** length_penalty
    found = model.generate(
        ids,
        attention_mask=mask,
        num_beams=vocabulary**steps,
        num_return_sequences=5,
        max_new_tokens=steps,
        length_penalty=length_penalty,
        early_stopping="never",
        use_cache=use_cache,
        output_scores=True,
        return_dict_in_generate=True,
    )
    sequences = found.sequences.view(2, 5, -1).tolist()
    for row in range(2):
        best = sorted(scores[row].items(), key=lambda item: -item[1])[:5]
        for (words, score), sequence, got in zip(
            best, sequences[row], found.sequences_scores.view(2, 5)[row].tolist()
        ):
            assert tuple(sequence[1 : 1 + len(words)]) == words
            assert math.isclose(got, score, rel_tol=1e-5)


@pytest.mark.parametrize("fields", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"num_beams": 4, "length_penalty": 0.5},
        {"do_sample": True, "top_k": 8},
        {"num_beams": 3, "do_sample": True},
    ],
    ids=["greedy", "beam", "sample", "beam-sample"],
)
def test_generation_is_the_same_without_a_cache_and_without_padding(fields, how):
    model = make_model(**fields)
    ids, mask = sources()
    arguments = {"max_new_tokens": 9, **how}

    def generate(ids, mask, **kwargs):
        torch.manual_seed(5)
        return model.generate(ids, attention_mask=mask, **arguments, **kwargs)

    cached = generate(ids, mask)
    assert torch.equal(cached, generate(ids, mask, use_cache=False))
    if not how.get("do_sample"):
        for row in range(len(ids)):
            real = mask[row].bool()
            alone = generate(ids[row : row + 1, real], None)[0]
            assert torch.equal(cached[row, : len(alone)], alone)
        static = generate(ids, mask, cache_implementation="static", disable_compile=True)
        assert torch.equal(cached, static)


def test_assisted_generation_rolls_back_to_what_greedy_search_gives():
    model, assistant = make_model(), make_model(1)
    ids = sources(1, 9)[0]
    greedy = model.generate(ids, max_new_tokens=12)
    assert torch.equal(greedy, model.generate(ids, max_new_tokens=12, assistant_model=assistant))


@pytest.mark.parametrize("tied", [True, False])
def test_generic_encoder_decoder_generates(tied):
    """transformers' own wrapper around two Megas, saved and loaded."""
    encoder = tiny_config(num_hidden_layers=1)
    decoder = tiny_config(**CAUSAL, add_cross_attention=True)
    config = EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = START, PAD, END
    config.decoder.tie_word_embeddings = tied
    torch.manual_seed(0)
    model = EncoderDecoderModel(config).eval()
    ids, mask = sources()
    for how in ({}, {"num_beams": 3}):
        arguments = {"attention_mask": mask, "max_new_tokens": 8, **how}
        cached = model.generate(ids, **arguments)
        assert torch.equal(cached, model.generate(ids, **arguments, use_cache=False))
    model(ids, attention_mask=mask, labels=ids).loss.backward()
    assert model.decoder.mega.layers[0].cross_attn.k_proj.weight.grad.any()


def test_generic_encoder_decoder_with_sizes_of_their_own(tmp_path):
    """A narrower encoder, without a projection of transformers' between."""
    encoder = tiny_config(hidden_size=12)
    decoder = tiny_config(**CAUSAL, add_cross_attention=True, cross_attention_hidden_size=12)
    model = EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)).eval()
    assert not hasattr(model, "enc_to_dec_proj")
    ids, mask = sources()
    logits = model(ids, attention_mask=mask, decoder_input_ids=ids).logits
    model.save_pretrained(tmp_path)
    again = EncoderDecoderModel.from_pretrained(tmp_path).eval()
    assert torch.allclose(again(ids, attention_mask=mask, decoder_input_ids=ids).logits, logits, atol=1e-6)


# --- outputs, storage, training


@pytest.mark.parametrize("fields", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_outputs(fields):
    model = make_model(**fields)
    encoder, decoder = model.config.encoder, model.config.decoder
    ids, mask = sources()
    target = sources(3, 5, seed=1)[0]
    arguments = {"attention_mask": mask, "decoder_input_ids": target}
    outputs = model(ids, **arguments, output_attentions=True, output_hidden_states=True)
    assert len(outputs.encoder_hidden_states) == encoder.num_hidden_layers + 1
    assert len(outputs.decoder_hidden_states) == decoder.num_hidden_layers + 1
    assert len(outputs.encoder_attentions) == encoder.num_hidden_layers
    assert len(outputs.decoder_attentions) == len(outputs.cross_attentions) == decoder.num_hidden_layers
    assert torch.equal(outputs.encoder_hidden_states[-1], outputs.encoder_last_hidden_state)
    for weights in outputs.cross_attentions:
        assert weights.shape == (3, 1, 5, 7)
        assert not weights.masked_select(mask[:, None, None] == 0).any()
        if decoder.attention_activation == "softmax":
            assert torch.allclose(weights.sum(-1), torch.ones(3, 1, 5, dtype=weights.dtype))
    plain = model(ids, **arguments)
    assert torch.allclose(plain.logits, outputs.logits, atol=1e-10)
    assert plain.cross_attentions is None and plain.decoder_hidden_states is None
    last = model(ids, **arguments, logits_to_keep=2).logits
    assert torch.allclose(last, outputs.logits[:, -2:], atol=1e-12)
    embedded = model.model.encoder.get_input_embeddings()(ids)
    by_embeddings = model(inputs_embeds=embedded, **arguments).logits
    assert torch.allclose(by_embeddings, outputs.logits, atol=1e-12)
    as_tuple = model(ids, **arguments, return_dict=False)
    assert torch.allclose(as_tuple[0], outputs.logits, atol=1e-10)


@pytest.mark.parametrize("fields", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_saved_and_loaded(fields, tmp_path):
    model = make_model(**fields).float()
    ids, mask = sources()
    labels = sources(3, 5, seed=1)[0]
    model.save_pretrained(tmp_path)
    again, info = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(again, MegaForConditionalGeneration) and not any(info.values())
    for side in ("encoder", "decoder"):
        before, after = (getattr(some.config, side).to_diff_dict() for some in (model, again))
        assert {**before, "dtype": None} == {**after, "dtype": None}
    expected = model(ids, attention_mask=mask, labels=labels)
    got = again.eval()(ids, attention_mask=mask, labels=labels)
    assert torch.allclose(got.logits, expected.logits, atol=1e-5)
    tables = [again.model.encoder.get_input_embeddings().weight, again.model.decoder.get_input_embeddings().weight]
    assert (tables[0] is tables[1]) == model.config.share_embeddings
    assert again.lm_head.weight is tables[1]
    trunk = MegaSeq2SeqModel.from_pretrained(tmp_path).eval()
    outputs = trunk(ids, attention_mask=mask, decoder_input_ids=labels)
    assert torch.allclose(outputs.encoder_last_hidden_state, expected.encoder_last_hidden_state, atol=1e-5)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("tie", [True, False])
def test_which_embeddings_are_one(share, tie, tmp_path):
    model = make_model(share_embeddings=share, tie_word_embeddings=tie).float()
    model.save_pretrained(tmp_path)
    for some in (model, MegaForConditionalGeneration.from_pretrained(tmp_path)):
        source = some.model.encoder.get_input_embeddings().weight
        target = some.model.decoder.get_input_embeddings().weight
        assert (source is target) == share and (some.lm_head.weight is target) == tie
        assert torch.equal(source, model.model.encoder.get_input_embeddings().weight)
        assert torch.equal(some.lm_head.weight, model.lm_head.weight)


def test_resized_vocabulary():
    model = make_model().float()
    model.resize_token_embeddings(40)
    assert model.config.encoder.vocab_size == model.config.decoder.vocab_size == model.config.vocab_size == 40
    assert model.lm_head.weight is model.model.encoder.get_input_embeddings().weight
    assert model(torch.tensor([[39]]), labels=torch.tensor([[38]])).logits.shape == (1, 1, 40)
    with pytest.raises(ValueError, match="share_embeddings=False"):
        make_model(share_embeddings=False).resize_token_embeddings(40)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(reentrant):
    ids, mask = sources()
    labels = sources(3, 5, seed=1)[0]
    gradients = []
    for checkpointing in (False, True):
        model = make_model().train()
        for module in model.modules():
            if hasattr(module, "p"):
                module.p = 0.0
        model.config.encoder.attention_probs_dropout_prob = model.config.decoder.attention_probs_dropout_prob = 0.0
        for layer in [*model.model.encoder.layers, *model.model.decoder.layers]:
            layer.mega_layer.attention_dropout = 0.0
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model(ids, attention_mask=mask, labels=labels).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-12) for name in gradients[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model = make_model().float()
    ids, mask = sources()
    labels = sources(3, 5, seed=1)[0]
    expected = model(ids, attention_mask=mask, labels=labels).logits
    with torch.autocast("cpu", torch.bfloat16):
        autocast = model(ids, attention_mask=mask, labels=labels).logits
    half = model.to(dtype)(ids, attention_mask=mask, labels=labels).logits
    for got in (autocast, half):
        assert (got.float() - expected).abs().max() < 0.15 * expected.abs().max()
    assert model.generate(ids, attention_mask=mask, max_new_tokens=4).shape[0] == 3


def test_compiled():
    model = make_model().float()
    ids, mask = sources()
    labels = sources(3, 5, seed=1)[0]
    expected = model(ids, attention_mask=mask, labels=labels).logits
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    got = compiled(input_ids=ids, attention_mask=mask, decoder_input_ids=None, labels=labels, use_cache=False).logits
    assert torch.allclose(got, expected, atol=1e-5)


def test_trainer_with_label_smoothing(tmp_path, tiny_tokenizer_folder):
    """The Trainer's smoothed loss, and evaluation by generating."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_folder, config=MegaConfig())
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer)}
    model = MegaForConditionalGeneration(seq2seq_config(encoder=sizes, decoder=sizes))
    texts = ["the cat sat", "a dog", "the dog sat on the mat", "a cat"]
    features = [
        {"input_ids": tokenizer(text)["input_ids"], "labels": tokenizer(text[::-1])["input_ids"]} for text in texts
    ]
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=2,
        label_smoothing_factor=0.1,
        predict_with_generate=True,
        generation_max_length=6,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
    )
    collator = DataCollatorForSeq2Seq(tokenizer, model=model)
    trainer = Seq2SeqTrainer(model, arguments, collator, train_dataset=features, eval_dataset=features)
    assert trainer.train().training_loss > 0
    batch = collator([dict(feature) for feature in features])
    assert torch.equal(batch["decoder_input_ids"], model.prepare_decoder_input_ids_from_labels(batch["labels"]))
    smoothed = trainer.compute_loss(model.eval(), dict(batch))
    expected = LabelSmoother(0.1)(model(**batch), batch["labels"])
    assert torch.allclose(smoothed, expected)
    assert trainer.predict(features).predictions.shape[0] == 4


def test_labels_count_where_they_are_given():
    model = make_model()
    ids, mask = sources()
    labels = sources(3, 6, seed=1)[0]
    labels[0, 3:] = labels[1, 5:] = -100
    outputs = model(ids, attention_mask=mask, labels=labels)
    counted = labels != -100
    chosen = outputs.logits.log_softmax(-1)[counted].gather(1, labels[counted][:, None])
    assert torch.allclose(outputs.loss, -chosen.mean())
    assert outputs.cache is None
    halved = model(ids, attention_mask=mask, labels=labels, num_items_in_batch=2 * int(counted.sum())).loss
    assert torch.allclose(2 * halved, outputs.loss)


# --- bad input


def test_configurations_that_cannot_work():
    with pytest.raises(ValueError, match="share_embeddings=True needs token embeddings of the same shape"):
        seq2seq_config(encoder={"vocab_size": 40})
    with pytest.raises(ValueError, match="tie_word_embeddings=True needs embedding_size=4"):
        seq2seq_config(decoder={"embedding_size": 4}, share_embeddings=False)
    with pytest.raises(ValueError, match="hidden_size=0"):
        seq2seq_config(encoder={"hidden_size": 0})
    with pytest.raises(ValueError, match="needs is_decoder=True"):
        tiny_config(add_cross_attention=True)
    with pytest.raises(ValueError, match="cross_attention_max_positions=0"):
        tiny_config(**CAUSAL, add_cross_attention=True, cross_attention_max_positions=0)
    with pytest.raises(ValueError, match="label"):
        make_model()(torch.tensor([[5]]))


def test_sources_that_cannot_be_read():
    simple = {"relative_positional_bias": "simple", "max_positions": 6}
    decoder = MegaModel(tiny_config(**CAUSAL, **simple, add_cross_attention=True))
    ids, states = torch.full((2, 4), 5), torch.zeros(2, 5, 8)
    with pytest.raises(ValueError, match="encoder_hidden_states are missing"):
        decoder(ids)
    with pytest.raises(ValueError, match="hidden_size=8"):
        decoder(ids, encoder_hidden_states=torch.zeros(2, 5, 9))
    with pytest.raises(ValueError, match="3 rows, but the decoder's input has 2"):
        decoder(ids, encoder_hidden_states=torch.zeros(3, 5, 8))
    with pytest.raises(ValueError, match="at least one source token"):
        decoder(ids, encoder_hidden_states=torch.zeros(2, 0, 8))
    with pytest.raises(ValueError, match="encoder_attention_mask has shape"):
        decoder(ids, encoder_hidden_states=states, encoder_attention_mask=torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"encoder_hidden_states has 7 tokens.*serves 6 positions"):
        decoder(ids, encoder_hidden_states=torch.zeros(2, 7, 8))
    with pytest.raises(ValueError, match="packed documents cannot attend"):
        decoder(ids, encoder_hidden_states=states, seq_idx=torch.tensor([[0, 0, 1, 1]] * 2))
    with pytest.raises(ValueError, match="no cross-attention"):
        MegaModel(tiny_config())(ids, encoder_hidden_states=states)
    with pytest.raises(ValueError, match="at least one row and one token"):
        make_model()(torch.zeros(1, 0, dtype=torch.long), labels=torch.tensor([[5]]))
    with pytest.raises(ValueError, match=r"max_length=8 .* 6 positions"):
        make_model(decoder=simple, encoder={"max_positions": 6}).generate(torch.tensor([[5, 6]]), max_length=8)
    with pytest.raises(ValueError, match="labels holds 31"):
        make_model()(torch.tensor([[5]]), labels=torch.tensor([[31]]))


def test_simple_bias_of_cross_attention_serves_source_and_target():
    """The authors' rule: as many positions as the longer of both, chunks or not."""
    config = seq2seq_config(
        encoder={"max_positions": 30},
        decoder={"max_positions": 10, "relative_positional_bias": "simple", "use_chunking": True, "chunk_size": 4},
    )
    model = MegaForConditionalGeneration(config)
    assert model.model.decoder.layers[0].cross_attn.rel_pos_bias.rel_pos_bias.shape == (59,)
    assert model(torch.full((1, 30), 5), labels=torch.full((1, 25), 5)).logits.shape[1] == 25
    with pytest.raises(ValueError, match="serves 30 positions"):
        model(torch.full((1, 31), 5), labels=torch.full((1, 5), 5))


def test_cross_attention_is_not_limited_to_a_chunk():
    """4.40.2's was; what it saved is read as it was trained."""
    fields = {**CAUSAL, "add_cross_attention": True, "relative_positional_bias": "simple", "max_positions": 20}
    fields |= {"use_chunking": True, "chunk_size": 4}
    model = MegaModel(tiny_config(**fields))
    states = torch.randn(1, 15, 8)
    assert model(torch.full((1, 12), 5), encoder_hidden_states=states).last_hidden_state.shape[1] == 12
    old = tiny_config(**fields, transformers_version="4.40.2")
    bias = MegaModel(old).layers[0].cross_attn.rel_pos_bias
    assert (bias.centre, bias.rel_pos_bias.numel()) == (3, 39)


def test_caches_that_do_not_fit():
    model, ids = make_model(), torch.full((2, 4), 5)
    cache = model(ids, decoder_input_ids=ids).cache
    with pytest.raises(ValueError, match="2 rows"):
        model(ids[:1], decoder_input_ids=ids[:1], cache=cache)
    wider = make_model(encoder={"hidden_size": 12}, share_embeddings=False, decoder={"shared_representation_size": 6})
    with pytest.raises(ValueError, match="cache belongs to another model"):
        wider(ids, decoder_input_ids=ids, cache=cache)
    mixed = EncoderDecoderCache(DynamicCache(config=model.config.decoder), cache.cross_attention_cache)
    mixed.cross_attention_cache.layers = mixed.cross_attention_cache.layers[:1]
    with pytest.raises(ValueError, match="cross-attention part"):
        model(ids, decoder_input_ids=ids, cache=mixed)
    causal = MegaModel(MegaConfig(**SIZES, **CAUSAL))
    with pytest.raises(ValueError, match="no cross-attention"):
        causal(ids, cache=EncoderDecoderCache(DynamicCache(config=causal.config), DynamicCache()))
