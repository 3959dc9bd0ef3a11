"""The bundled models quantised by other libraries: they lose little, and generate with a cache as without."""

import pytest
import torch
from transformers import AutoTokenizer, DynamicCache, pipeline

from benchmarks.quantisation import CLASSES, FORMS, load, loss_of, save_compressed
from mega_transformers import MegaForCausalLM
from mega_transformers.assets import DEFAULT_CAUSAL_MODEL, DEFAULT_MODEL, DEFAULT_PAIR_MODEL, bundled_model
from tests.tiny import CAUSAL, tiny_config

# how far the loss may be from float32's; measured are at most 0.0045 and 0.027 (docs/quantisation.md)
WITHIN = {
    "bfloat16": 0.002,
    "torchao int8 weights": 0.01,
    "torchao int8 weights and activations": 0.01,
    "torchao int4 weights, groups of 32": 0.05,
    "bitsandbytes 8-bit": 0.01,
    "bitsandbytes 4-bit nf4": 0.05,
    "compressed-tensors int8 weights": 0.01,
    "compressed-tensors int4 weights, groups of 32": 0.05,
    "torch.ao quantize_dynamic qint8": 0.1,  # one scale for the activations of all tokens
}
# activations too are rounded, by a scale of each token's or of all tokens'
ROUNDED_ACTIVATIONS = ("torchao int8 weights and activations", "torch.ao quantize_dynamic qint8")
PROMPTS = {DEFAULT_CAUSAL_MODEL: "The captain of the ship", DEFAULT_PAIR_MODEL: "kesterly"}
SENTENCE = "The <mask> of the ship gave an order."

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated"),
    pytest.mark.filterwarnings("ignore:MatMul8bitLt"),
]


@pytest.fixture(scope="module")
def plain():
    """The bundled models in float32."""
    return {name: load(name) for name in CLASSES}


def quantised(form, name):
    library = form.partition(" ")[0]
    if library not in ("bfloat16", "torch.ao"):
        pytest.importorskip(library.replace("-", "_"))
    if form == "bitsandbytes 4-bit nf4" and name == DEFAULT_CAUSAL_MODEL:
        pytest.skip("bitsandbytes 0.50 needs widths that are multiples of 64 on a CPU; this model is 224 wide")
    return FORMS[form](name)


def inputs_of(name):
    return AutoTokenizer.from_pretrained(bundled_model(name))(PROMPTS[name], return_tensors="pt")


def logits_without_and_with_cache(model, ids):
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        cache = DynamicCache(config=model.config)
        steps = [model(input_ids=ids[:, i : i + 1], cache=cache).logits for i in range(ids.shape[1])]
    return whole, torch.cat(steps, dim=1)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("form", WITHIN)
def test_bundled_models(form, name, plain):
    model = quantised(form, name)
    changed = [type(m).__name__ for m in model.modules() if type(m) is not torch.nn.Linear and "inear" in str(type(m))]
    changed += [n for n, p in model.named_parameters() if p.dtype != torch.float32 or type(p.data) is not torch.Tensor]
    assert changed or form.startswith("compressed"), "something is quantised"
    assert abs(loss_of(model, name) - loss_of(plain[name], name)) < WITHIN[form]
    emas = [p for n, p in model.named_parameters() if "ema_gate" in n]
    assert emas and all(type(p.data) is torch.Tensor and p.dtype == torch.float32 for p in emas)
    if name == DEFAULT_MODEL:
        fill = pipeline("fill-mask", model=model, tokenizer=AutoTokenizer.from_pretrained(bundled_model(name)))
        expected = pipeline("fill-mask", model=plain[name], tokenizer=fill.tokenizer)
        words = [guess["token_str"] for guess in fill(SENTENCE, top_k=5)]
        assert expected(SENTENCE, top_k=1)[0]["token_str"] in words
        return
    inputs = inputs_of(name)
    options = {**inputs, "max_new_tokens": 16, "do_sample": False}
    made = model.generate(**options)
    if form not in ROUNDED_ACTIVATIONS:
        assert made.tolist() == model.generate(**options, use_cache=False).tolist()
    elif name == DEFAULT_CAUSAL_MODEL:
        # to round activations is to tell apart what hardly differs: as far as the rounding itself
        whole, steps = logits_without_and_with_cache(model, made)
        exact, _ = logits_without_and_with_cache(plain[name], made)
        assert (whole - steps).norm() < 2 * (whole - exact).norm()


@pytest.mark.parametrize("form", ["torchao int8 weights", "bitsandbytes 8-bit"])
def test_quantised_models_are_saved_and_loaded(form, tmp_path):
    model = quantised(form, DEFAULT_CAUSAL_MODEL)
    model.save_pretrained(tmp_path)
    loaded = MegaForCausalLM.from_pretrained(tmp_path).eval()
    ids = inputs_of(DEFAULT_CAUSAL_MODEL)["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("rows", [1, 3])
def test_four_bits_of_bitsandbytes_are_those_it_stores(rows, tmp_path):
    """Its kernel takes an input for contiguous, which the EMA's output is not."""
    pytest.importorskip("bitsandbytes")
    from bitsandbytes.functional import dequantize_4bit
    from transformers import BitsAndBytesConfig

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "nffn_hidden_size": 128, "shared_representation_size": 64}
    exact = MegaForCausalLM(tiny_config(**CAUSAL, **sizes, initializer_range=0.1))
    exact.save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=True)
    model = MegaForCausalLM.from_pretrained(tmp_path, quantization_config=config, dtype=torch.float32).eval()
    for name, module in model.named_modules():
        if type(module).__name__ == "Linear4bit":
            weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
            exact.get_submodule(name).weight.data.copy_(weight)
    ids = torch.randint(3, 31, (rows, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = model(input_ids=ids).logits, exact.eval()(input_ids=ids).logits
    assert (found - expected).norm() < 0.03 * expected.norm()  # it multiplies in bfloat16


def test_compressed_checkpoints_take_packed_and_padded_rows(tmp_path):
    """compressed-tensors copies the layout that all layers share."""
    pytest.importorskip("compressed_tensors")
    torch.manual_seed(0)
    model = MegaForCausalLM(tiny_config(**CAUSAL, initializer_range=0.5, use_chunking=True, chunk_size=4)).eval()
    save_compressed(model, tmp_path, num_bits=8, strategy="channel")
    model = MegaForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.randint(3, 31, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        packed = model(input_ids=ids, position_ids=torch.arange(6).repeat(2).unsqueeze(0)).logits
        apart = model(input_ids=ids.view(2, 6)).logits
        padded = model(input_ids=ids[:, :8], attention_mask=(torch.arange(8) >= 2).long().unsqueeze(0)).logits
        alone = model(input_ids=ids[:, 2:8]).logits
    torch.testing.assert_close(packed.view_as(apart), apart)
    torch.testing.assert_close(padded[:, 2:], alone)
