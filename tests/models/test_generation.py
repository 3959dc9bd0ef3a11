"""`generate` over our caches: every way to decode gives the tokens of the plain, uncached loop."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from tiny import CAUSAL, tiny_config
from transformers import (
    AutoModelForCausalLM,
    CompileConfig,
    DynamicCache,
    StaticCache,
    TextIteratorStreamer,
)

from mega_transformers import MegaConfig, MegaForCausalLM, MegaForMaskedLM, MegaModel

FORMS = {
    "softmax": {},
    "simple": {"relative_positional_bias": "simple"},
    "chunked": {"use_chunking": True, "chunk_size": 8},
    "chunked-simple-relu2": {
        "use_chunking": True,
        "chunk_size": 5,
        "relative_positional_bias": "simple",
        "attention_activation": "relu2",
    },
    "laplace": {"attention_activation": "laplace", "normalize_before_mega": False},
    "truncated": {"truncation": 3},
    "types": {"add_token_type_embeddings": True, "normalization_type": "layernorm"},
}
NEW = 9


def make(form: str = "softmax", **fields) -> MegaForCausalLM:
    sizes = {"vocab_size": 50, "hidden_size": 16, "max_positions": 64, "initializer_range": 0.5, "eos_token_id": None}
    config = tiny_config(**{**CAUSAL, **sizes, **FORMS[form], **fields})
    torch.manual_seed(0)
    return MegaForCausalLM(config).eval().double()


def prompts(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 50, (length,), generator=generator) for length in lengths]


def padded(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    width = max(len(row) for row in rows)
    ids, mask = torch.full((len(rows), width), 1), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :], mask[i, width - len(row) :] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def plain_loop(model: MegaForCausalLM, row: torch.Tensor, count: int = NEW) -> list[int]:
    """Greedy decoding without a cache, without `generate`."""
    ids = row.unsqueeze(0)
    with torch.no_grad():
        for _ in range(count):
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, len(row) :].tolist()


def generate(model: MegaForCausalLM, inputs: dict, **options) -> list[list[int]]:
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 1, **options}
    return model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :].tolist()


GREEDY = {
    "cached": {},
    "uncached": {"use_cache": False},
    "static": {"cache_implementation": "static"},
    "prefill in pieces": {"prefill_chunk_size": 4},
    "offloaded": {"cache_implementation": "offloaded"},
}


@pytest.mark.parametrize("how", [how for how in GREEDY if how != "offloaded" or torch.cuda.is_available()])
@pytest.mark.parametrize("form", FORMS)
def test_batch_of_unequal_prompts_gives_what_one_by_one_gives(form, how):
    model, rows = make(form), prompts(3, 17, 1, 10)
    expected = [plain_loop(model, row) for row in rows]
    if how == "offloaded":  # from an accelerator to the CPU
        model, rows = model.cuda(), [row.cuda() for row in rows]
    inputs = {name: tensor.to(model.device) for name, tensor in padded(rows).items()}
    assert generate(model, inputs, **GREEDY[how]) == expected
    for row, tokens in zip(rows, expected):
        assert generate(model, {"input_ids": row[None]}, **GREEDY[how]) == [tokens]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "search",
    [
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5},
        {"num_return_sequences": 3, "do_sample": True, "top_k": 5},
        {"num_beams": 2, "do_sample": True},
    ],
    ids=str,
)
def test_search_and_sampling_do_not_depend_on_the_cache(form, search):
    model, inputs = make(form), padded(prompts(3, 17, 10))
    results = []
    for how in ({"use_cache": False}, {}, {"cache_implementation": "static"}):
        torch.manual_seed(5)
        results.append(generate(model, inputs, **search, **how))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", ["lookup", "assistant"])
def test_assisted_decoding_rolls_the_state_back(form, how):
    model = make(form)
    if how == "lookup":
        row = prompts(6)[0].repeat(3)
        options = {"prompt_lookup_num_tokens": 4}
    else:
        row = prompts(7)[0]
        assistant = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in assistant.parameters():
                parameter += 0.02 * torch.randn_like(parameter)  # right sometimes
        options = {"assistant_model": assistant}
    count = 25
    got = generate(model, {"input_ids": row[None]}, max_new_tokens=count, **options)
    assert got == [plain_loop(model, row, count)]


@pytest.mark.parametrize("form", ["softmax", "chunked", "truncated"])
def test_a_prompt_is_read_once_for_several_continuations(form):
    model, (start, first, second) = make(form), prompts(11, 3, 6)
    with torch.no_grad():
        cache = model(start[None], use_cache=True).cache
    for more in (first, second):
        row = torch.cat([start, more])
        again = copy.deepcopy(cache)
        assert generate(model, {"input_ids": row[None]}, cache=again) == [plain_loop(model, row)]
        assert again.get_seq_length() == len(row) + NEW - 1
    assert cache.get_seq_length() == len(start)


@pytest.mark.parametrize("length", [8, 11])
def test_going_on_without_a_graph_leaves_an_earlier_one_whole(length):
    """8 tokens end a chunk: their keys are no longer kept, but the graph needs them."""
    model, (row,) = make("chunked"), prompts(length)
    outputs = model(row[None], use_cache=True)
    with torch.no_grad():
        model(row[None, :2], cache=outputs.cache)
    outputs.logits.sum().backward()
    got = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model(row[None], use_cache=False).logits.sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad)


def test_a_cache_made_without_a_configuration_works():
    model, (row,) = make("chunked"), prompts(11)
    assert generate(model, {"input_ids": row[None]}, cache=DynamicCache()) == [plain_loop(model, row)]


@pytest.mark.parametrize("form", ["chunked", "truncated", "laplace"])
def test_decoding_steps_compile_into_one_graph(form):
    model, inputs = make(form), padded(prompts(3, 12))
    expected = generate(model, inputs)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    how = CompileConfig(fullgraph=True, backend="aot_eager", mode=None)
    how._compile_all_devices = True
    got = generate(model, inputs, cache_implementation="static", compile_config=how)
    assert got == expected
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_longer_than_max_positions_with_rotary_bias():
    model, (row,) = make("chunked", max_positions=8), prompts(6)
    assert generate(model, {"input_ids": row[None]}, max_new_tokens=30) == [plain_loop(model, row, 30)]


def test_token_types_are_passed_on():
    model, (row,) = make("types"), prompts(9)
    types = torch.arange(9)[None] % 2
    got = generate(model, {"input_ids": row[None], "token_type_ids": types})
    ids = row[None]
    with torch.no_grad():
        for _ in range(NEW):
            logits = model(ids, token_type_ids=types, use_cache=False).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
            types = torch.cat([types, types[:, -1:]], dim=1)
    assert got == [ids[0, 9:].tolist()]
    assert got != generate(model, {"input_ids": row[None]})


def test_embeddings_in_place_of_ids():
    model, (row,) = make("chunked"), prompts(9)
    embeds = model.get_input_embeddings()(row[None])
    got = model.generate(inputs_embeds=embeds, max_new_tokens=NEW, do_sample=False, pad_token_id=1)
    assert got[0, -NEW:].tolist() == plain_loop(model, row)


def test_streaming(tiny_tokenizer_folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_folder, config=MegaConfig())
    model = make("chunked", vocab_size=len(tokenizer))
    inputs = tokenizer("The ship", return_tensors="pt", add_special_tokens=False)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 1}
    thread = threading.Thread(target=model.generate, kwargs={**inputs, **options, "streamer": streamer})
    thread.start()
    pieces = list(streamer)
    thread.join()
    whole = model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
    assert len(pieces) > 5
    assert "".join(pieces) == tokenizer.decode(whole)


def test_logits_to_keep():
    model, (row,) = make(), prompts(9)
    with torch.no_grad():
        whole = model(row[None]).logits
        for keep, expected in ((1, whole[:, -1:]), (torch.tensor([0, 4]), whole[:, [0, 4]])):
            torch.testing.assert_close(model(row[None], logits_to_keep=keep).logits, expected)


def test_loss_per_item_in_batch():
    model, (row,) = make(), prompts(9)
    loss = model(row[None], labels=row[None]).loss
    with torch.no_grad():
        logits = model(row[None]).logits
    expected = torch.nn.functional.cross_entropy(logits[0, :-1], row[1:])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(model(row[None], labels=row[None], num_items_in_batch=4).loss, expected * 8 / 4)


@pytest.mark.parametrize("tied", [True, False])
def test_saved_and_loaded(tied, tmp_path):
    model = make("chunked", tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert type(loaded) is MegaForCausalLM
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tied
    inputs = padded(prompts(4, 9))
    assert generate(loaded, inputs) == generate(model, inputs)


# -- what cannot work


def cache_of(model: MegaForCausalLM, length: int = 5, rows: int = 1) -> DynamicCache:
    with torch.no_grad():
        return model(torch.full((rows, length), 7), use_cache=True).cache


def test_a_masked_language_model_takes_no_cache():
    model = MegaForMaskedLM(MegaConfig(vocab_size=50, num_hidden_layers=1))
    with pytest.raises(ValueError, match=r"a cache is given.*is_decoder=False"):
        model(torch.full((1, 3), 7), cache=DynamicCache(config=model.config))


@pytest.mark.parametrize(
    ("cache", "message"),
    [
        (lambda: cache_of(make(num_hidden_layers=3)), "another model.*3 layers"),
        (lambda: cache_of(make(hidden_size=32)), "another model.*widths"),
        (lambda: cache_of(make("chunked")), "another model.*chunk_size is 8"),
        (lambda: cache_of(make(), rows=2), "holds 2 rows, but the input has 1"),
        (lambda: [1, 2, 3], "has 3 entries"),
        (lambda: "cache", "is a str"),
    ],
)
def test_a_cache_that_does_not_fit(cache, message):
    with pytest.raises(ValueError, match=message):
        make()(torch.full((1, 2), 7), cache=cache())


def test_a_cache_of_another_architecture():
    from transformers import GPT2Config, GPT2LMHeadModel

    other = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=2, n_head=1))
    _, cache = other(torch.full((1, 3), 7), use_cache=True, return_dict=False)
    with pytest.raises(ValueError, match="another model: it has layers of DynamicLayer"):
        make()(torch.full((1, 2), 7), cache=cache)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_a_cache_on_another_device():
    cache = cache_of(make())
    with pytest.raises(ValueError, match="is on cpu"):
        make().cuda()(torch.full((1, 2), 7, device="cuda"), cache=cache)


@pytest.mark.parametrize("width", [2, 6, 8])
def test_a_mask_must_cover_cached_and_new_tokens(width):
    model = make()
    with pytest.raises(ValueError, match=r"\(1, 5 \+ 2\)"):
        model(torch.full((1, 2), 7), attention_mask=torch.ones(1, width), cache=cache_of(model))


def test_a_prompt_without_tokens():
    with pytest.raises(ValueError, match="at least one"):
        make()(torch.zeros(1, 0, dtype=torch.long))


def test_more_tokens_than_a_simple_bias_serves():
    model = make("simple")
    with pytest.raises(ValueError, match=r"max_length=100.*64 positions"):
        model.generate(torch.full((1, 3), 7), max_length=100)
    assert model.generate(torch.full((1, 3), 7), max_length=65, pad_token_id=1).shape == (1, 65)
    with pytest.raises(ValueError, match=r"65 tokens.*max_positions=64"):
        model(torch.full((1, 1), 7), cache=cache_of(model, 64))


def test_more_tokens_than_a_static_cache_holds():
    model = make()
    cache = StaticCache(config=model.config, max_cache_len=6)
    with torch.no_grad():
        model(torch.full((1, 5), 7), cache=cache)
        with pytest.raises(ValueError, match=r"max_cache_len=6.*5 \+ 2"):
            model(torch.full((1, 2), 7), cache=cache)


def test_labels_need_all_logits():
    with pytest.raises(ValueError, match="logits_to_keep=1"):
        make()(torch.full((1, 3), 7), labels=torch.full((1, 3), 7), logits_to_keep=1)


def test_encoder_states_need_cross_attention():
    with pytest.raises(ValueError, match="add_cross_attention=False"):
        make()(torch.full((1, 3), 7), encoder_hidden_states=torch.zeros(1, 4, 16))


def test_a_model_that_would_see_the_future(caplog):
    with pytest.raises(ValueError, match="bidirectional=False, is_decoder=True"):
        MegaForCausalLM(MegaConfig())
    config = MegaConfig(vocab_size=50, num_hidden_layers=1, bidirectional=False)
    import transformers

    transformers.utils.logging.warning_once.cache_clear()
    model = MegaForCausalLM(config)
    assert "is_decoder=True" in caplog.text
    assert model.config.is_decoder and not config.is_decoder
    assert isinstance(model.mega, MegaModel) and model.mega.config.is_decoder


def test_packed_documents_do_not_continue_a_cache():
    model = make()
    with pytest.raises(ValueError, match="packed documents"):
        model(torch.full((1, 4), 7), position_ids=torch.tensor([[0, 1, 0, 1]]), cache=cache_of(model))


@pytest.mark.parametrize("tokens", [1, -6, -3])
def test_a_cache_cannot_go_back_further_than_recorded(tokens):
    cache = cache_of(make())
    with pytest.raises(ValueError, match="crop"):
        cache.crop(tokens)
