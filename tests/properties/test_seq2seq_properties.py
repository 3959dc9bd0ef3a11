"""Encoder-decoders: padding changes nothing, and tokens in pieces give what teacher forcing gives."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_models import VOCABULARY, any_setting, close, configurations, randomised, rows, seeds

from mega_transformers import MegaForConditionalGeneration, MegaSeq2SeqConfig


@st.composite
def seq2seq_configs(draw):
    """Encoder and decoder of configurations of their own, with and without the authors' additions."""
    sides = [draw(configurations(causal=causal)) for causal in (False, True)]
    for side in sides:
        side.add_token_type_embeddings = False
        side.scale_embeddings = draw(st.booleans())
        side.normalize_embeddings = draw(st.booleans())
        side.final_norm = draw(st.booleans())
        side.embedding_size = draw(st.sampled_from([None, 5]))
    encoder, decoder = sides
    share = draw(st.booleans())
    if share:
        decoder.embedding_size = encoder.embedding_size
    else:
        encoder.hidden_size = draw(st.sampled_from([6, 8]))
        encoder.vocab_size = VOCABULARY + 4
    tie = draw(st.booleans()) and decoder.embedding_size is None
    config = MegaSeq2SeqConfig(encoder=encoder, decoder=decoder, share_embeddings=share, tie_word_embeddings=tie)
    config._attn_implementation = draw(st.sampled_from(["eager", "sdpa"]))
    return config


def make_seq2seq(config, seed=0):
    return randomised(MegaForConditionalGeneration(config), seed)


@st.composite
def padded(draw, rows_of_ids):
    """ids and mask (B, L) of rows with garbage around them."""
    width = max(len(row) for row in rows_of_ids) + draw(st.integers(0, 4))
    ids = torch.randint(0, VOCABULARY, (len(rows_of_ids), width))
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows_of_ids):
        start = draw(st.integers(0, width - len(row)))
        ids[i, start : start + len(row)] = row
        mask[i, start : start + len(row)] = 1
    return ids, mask


@st.composite
def batches(draw):
    """Sources and targets, each as rows and as a padded batch."""
    count, seed = draw(st.integers(1, 3)), draw(seeds)
    lengths = st.lists(st.integers(1, 12), min_size=count, max_size=count)
    sources, targets = rows(draw(lengths), seed), rows(draw(lengths), seed + 1)
    return sources, targets, draw(padded(sources)), draw(padded(targets))


def logits_of(model, source, source_mask, target, target_mask, **kwargs):
    with torch.no_grad():
        return model(
            source,
            attention_mask=source_mask,
            decoder_input_ids=target,
            decoder_attention_mask=target_mask,
            **kwargs,
        )


@any_setting
@given(seq2seq_configs(), batches())
def test_padding_on_either_side_changes_nothing(config, batch):
    model, (sources, targets, source, target) = make_seq2seq(config), batch
    logits = logits_of(model, *source, *target, use_cache=False).logits
    assert logits.isfinite().all()
    for i, (row, words) in enumerate(zip(sources, targets)):
        alone = logits_of(model, row[None], None, words[None], None, use_cache=False).logits
        assert close(logits[i, target[1][i].bool()], alone[0])


@any_setting
@given(seq2seq_configs(), batches(), st.lists(st.integers(1, 15), max_size=5))
def test_pieces_give_what_teacher_forcing_gives(config, batch, cuts):
    model, (_, _, source, (ids, mask)) = make_seq2seq(config), batch
    whole = logits_of(model, *source, ids, mask, use_cache=False).logits
    length = ids.shape[1]
    for borders in (sorted({min(cut, length) for cut in cuts} | {length}), range(1, length + 1)):
        cache, start, parts = None, 0, []
        encoded = model.get_encoder()(source[0], attention_mask=source[1])
        for stop in borders:
            given = {"cache": cache, "use_cache": True, "encoder_outputs": encoded}
            outputs = logits_of(model, None, source[1], ids[:, start:stop], mask[:, :stop], **given)
            cache, start = outputs.cache, stop
            parts.append(outputs.logits)
        assert close(torch.cat(parts, dim=1)[mask.bool()], whole[mask.bool()])


@any_setting
@given(seq2seq_configs(), batches(), st.integers(1, 15), seeds)
def test_beams_can_be_reordered_and_rolled_back(config, batch, cut, seed):
    """A cache whose rows were permuted, and from which a token was taken back, goes on as if it had been made so."""
    model, (_, _, (source, source_mask), (ids, mask)) = make_seq2seq(config), batch
    if ids.shape[1] < 3:
        return
    cut = min(cut, ids.shape[1] - 2)
    order = torch.randint(0, len(ids), (len(ids),), generator=torch.Generator().manual_seed(seed))
    cache = logits_of(model, source, source_mask, ids[:, :cut], mask[:, :cut], use_cache=True).cache
    cache.activate_past_recording()
    kept = copy.deepcopy(cache)
    logits_of(model, source, source_mask, ids[:, cut:-1], mask[:, :-1], cache=cache)
    cache.crop(cut + 1 - ids.shape[1])
    for some in (cache, kept):
        some.reorder_cache(order)
        now = source[order], source_mask[order], ids[order, cut:], mask[order]
        got = logits_of(model, *now, cache=some).logits
        whole = logits_of(model, source[order], source_mask[order], ids[order], mask[order], use_cache=False).logits
        real = mask[order, cut:].bool()
        assert close(got[real], whole[:, cut:][real])


@pytest.mark.parametrize("activation", ["softmax", "laplace", "relu2"])
def test_a_source_of_padding_is_finite_and_harmless(activation):
    side = {"hidden_size": 6, "num_hidden_layers": 1, "attention_activation": activation, "vocab_size": VOCABULARY}
    model = make_seq2seq(MegaSeq2SeqConfig(encoder=side, decoder=side))
    source, target = torch.randint(3, VOCABULARY, (2, 5)), torch.randint(3, VOCABULARY, (2, 4))
    mask = torch.tensor([[1] * 5, [0] * 5])
    both = model(source, attention_mask=mask, labels=target)
    both.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert both.logits.isfinite().all()
    one = model(source[:1], labels=target[:1])
    assert close(both.logits[0], one.logits[0])
