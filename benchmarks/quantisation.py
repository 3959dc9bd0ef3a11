"""The bundled models quantised by other libraries: loss, size and processor time.

`python -m benchmarks.quantisation` prints the tables of docs/quantisation.md.
"""

from __future__ import annotations

import io
import platform
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    TorchAoConfig,
)
from transformers.utils import logging

import mega_transformers  # noqa: F401  (registers the models)
from mega_transformers.assets import DEFAULT_CAUSAL_MODEL, DEFAULT_MODEL, DEFAULT_PAIR_MODEL, bundled_model

CLASSES = {
    DEFAULT_MODEL: AutoModelForMaskedLM,
    DEFAULT_CAUSAL_MODEL: AutoModelForCausalLM,
    DEFAULT_PAIR_MODEL: AutoModelForSeq2SeqLM,
}

# Written for this file, and so in nobody's training data.
TEXT = """
The lamp in the harbour office had been burning since four in the afternoon, and nobody had thought to trim it.
Captain Orrin read the letter twice, folded it, and put it under the inkstand. "They will not send the second ship,"
he said. "Not before the spring." The clerk looked out at the rain. There were eleven men on the island with flour for
perhaps forty days, and the winter had hardly begun. He thought of his brother, who had laughed when they parted, and
of the dog that would not come into the boat. At last he took a clean sheet and began to write to the governor,
slowly, in large letters, as one writes to a person who must not be allowed to misunderstand.
"""
WORDS = {
    "bellingrove": "B EH L IH NG G R OW V",
    "blonter": "B L AA N T ER",
    "cromwick": "K R AA M W IH K",
    "dastler": "D AE S T L ER",
    "frandish": "F R AE N D IH SH",
    "grimpton": "G R IH M P T AH N",
    "kesterly": "K EH S T ER L IY",
    "mandrop": "M AE N D R AA P",
    "plinket": "P L IH NG K AH T",
    "snarder": "S N AA R D ER",
    "sturbing": "S T ER B IH NG",
    "tressable": "T R EH S AH B AH L",
    "vundle": "V AH N D AH L",
    "wexham": "W EH K S AH M",
}
MASKED_EVERY = 7


def load(name: str, **options: Any) -> Any:
    """A bundled model, by default in float32."""
    return CLASSES[name].from_pretrained(bundled_model(name), **{"dtype": torch.float32, **options}).eval()


# -- forms: each takes the name of a bundled model


def plain(name: str) -> Any:
    return load(name)


def bfloat16(name: str) -> Any:
    return load(name, dtype=torch.bfloat16)


def torchao_int8(name: str) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return load(name, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))


def torchao_int8_activations(name: str) -> Any:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return load(name, quantization_config=TorchAoConfig(Int8DynamicActivationInt8WeightConfig()))


def torchao_int4(name: str) -> Any:
    """Four bits in a byte each: the packed forms of torchao 0.18 have no kernel for a CPU."""
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup

    config = IntxWeightOnlyConfig(torch.int4, granularity=PerGroup(32))
    return load(name, quantization_config=TorchAoConfig(config))


def bitsandbytes_int8(name: str) -> Any:
    return load(name, quantization_config=BitsAndBytesConfig(load_in_8bit=True))


def bitsandbytes_nf4(name: str) -> Any:
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    return load(name, quantization_config=config)


def compressed_int8(name: str) -> Any:
    return _compressed(name, num_bits=8, strategy="channel")


def compressed_int4(name: str) -> Any:
    return _compressed(name, num_bits=4, strategy="group", group_size=32)


def _compressed(name: str, **options: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        save_compressed(load(name), Path(folder), **options)
        model = CLASSES[name].from_pretrained(folder, dtype=torch.float32).eval()
        model.file_bytes = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
        return model


def save_compressed(model: Any, folder: Path, **options: Any) -> None:
    """Saves a model with its linear layers, except heads, rounded to integers and packed by compressed-tensors."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )
    from compressed_tensors.quantization.utils import calculate_qparams

    weights = QuantizationArgs(type="int", symmetric=True, **options)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    config = QuantizationConfig(config_groups={"all": scheme}, ignore=["re:.*head"], quantization_status="frozen")
    apply_quantization_config(model, config)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            groups = module.weight.detach().unflatten(1, (-1, weights.group_size or module.in_features))
            scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), weights)
            module.weight_scale.data.copy_(scale)
            if hasattr(module, "weight_zero_point"):
                module.weight_zero_point.data.copy_(zero)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)


def torch_dynamic(name: str) -> Any:
    return torch.ao.quantization.quantize_dynamic(load(name), {nn.Linear}, dtype=torch.qint8)


FORMS: dict[str, Callable[[str], Any]] = {
    "float32": plain,
    "bfloat16": bfloat16,
    "torchao int8 weights": torchao_int8,
    "torchao int8 weights and activations": torchao_int8_activations,
    "torchao int4 weights, groups of 32": torchao_int4,
    "bitsandbytes 8-bit": bitsandbytes_int8,
    "bitsandbytes 4-bit nf4": bitsandbytes_nf4,
    "compressed-tensors int8 weights": compressed_int8,
    "compressed-tensors int4 weights, groups of 32": compressed_int4,
    "torch.ao quantize_dynamic qint8": torch_dynamic,
}
"""Name -> what makes a bundled model in this form."""


# -- measurements


def loss_of(model: Any, name: str) -> float:
    """Cross entropy a token of `TEXT`, or of the pronunciations of `WORDS`."""
    tokenizer = AutoTokenizer.from_pretrained(bundled_model(name))
    if name == DEFAULT_PAIR_MODEL:
        words = tokenizer(list(WORDS), padding=True, return_tensors="pt")
        labels = tokenizer(text_target=list(WORDS.values()), padding=True, return_tensors="pt")
        inputs = dict(words, labels=labels["input_ids"].masked_fill(labels["attention_mask"] == 0, -100))
    else:
        ids = tokenizer(" ".join(TEXT.split()), return_tensors="pt")["input_ids"]
        if name == DEFAULT_CAUSAL_MODEL:
            inputs = {"input_ids": ids, "labels": ids}
        else:  # every token is masked in one of the rows
            masked = torch.arange(ids.shape[1]) % MASKED_EVERY == torch.arange(MASKED_EVERY).unsqueeze(1)
            rows = ids.expand(MASKED_EVERY, -1)
            inputs = {
                "input_ids": rows.masked_fill(masked, tokenizer.mask_token_id),
                "labels": rows.masked_fill(~masked, -100),
            }
    with torch.no_grad():
        return model(**inputs).loss.item()


def weight_bytes(model: Any) -> int:
    """What the weights take, each once."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return len(file.getvalue())


def seconds_of(run: Callable[[], Any], repeats: int = 5) -> float:
    """Least processor time of a few runs."""
    run()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def speed_of(model: Any, name: str) -> tuple[float, float | None]:
    """Milliseconds of a forward pass over 512 tokens, and of a decoding step behind 64 (64 steps) if it decodes."""
    ids = torch.randint(5, 70, (1, 512), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        forward = 1000 * seconds_of(lambda: model(input_ids=ids))
    if name != DEFAULT_CAUSAL_MODEL:
        return forward, None
    options = {"attention_mask": torch.ones_like(ids[:, :64]), "do_sample": False, "eos_token_id": None}
    long, short = (
        seconds_of(lambda: model.generate(ids[:, :64], max_new_tokens=n, **options))  # noqa: B023
        for n in (65, 1)
    )
    return forward, 1000 * (long - short) / 64


def table(name: str) -> list[str]:
    """The rows of a model: a form each, or what it raises."""
    lines = [
        "| form | loss | difference | MB in a file | MB in memory | forward, ms | decoding step, ms |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    reference = None
    for form, make in FORMS.items():
        try:
            model = make(name)
            loss = loss_of(model, name)
        except RuntimeError as error:
            lines.append(f"| {form} | {type(error).__name__} | | | | | |")
            continue
        reference = loss if reference is None else reference
        memory = weight_bytes(model)
        file = getattr(model, "file_bytes", memory)
        cells = [f"{loss:.4f}", f"{loss - reference:+.4f}", f"{file / 1e6:.1f}", f"{memory / 1e6:.1f}"]
        times = (None, None) if name == DEFAULT_PAIR_MODEL else speed_of(model, name)
        cells += ["" if each is None else f"{each:.1f}" for each in times]
        lines.append(f"| {form} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Prints everything."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for name in CLASSES:
        print(f"\n**{name}**\n", *table(name), sep="\n", flush=True)
    packages = ("torch", "transformers", "torchao", "bitsandbytes", "compressed-tensors")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    print(f"\nPython {platform.python_version()}, {versions}; one thread; {platform.machine()}")


if __name__ == "__main__":
    main()
