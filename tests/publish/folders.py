"""Small models of every class, with random weights, as saved folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tiny import CAUSAL, SIZES, tiny_config

import mega_transformers

SEQ2SEQ = {"vocab_size": 31, "max_positions": 32}


def make(architecture: str, seed: int = 0, **fields: Any) -> Any:
    """A model whose weights are all far from those it starts with; `fields` are its configuration's."""
    torch.manual_seed(seed)
    if architecture in ("MegaForConditionalGeneration", "MegaSeq2SeqModel"):
        own = {name: fields.pop(name) for name in ("share_embeddings", "tie_word_embeddings") if name in fields}
        sides = {side: {**SIZES, **SEQ2SEQ, **fields.pop(side, {})} for side in ("encoder", "decoder")}
        config = mega_transformers.MegaSeq2SeqConfig(
            encoder={**sides["encoder"], **fields}, decoder={**sides["decoder"], **fields}, **own
        )
    else:
        causal = CAUSAL if architecture == "MegaForCausalLM" else {}
        config = tiny_config(**{**causal, **fields})
    model = getattr(mega_transformers, architecture)(config).eval()
    randomise(model)
    return model


def encoder_decoder() -> Any:
    """transformers' own wrapper, with an encoder narrower than the decoder."""
    sides = {
        "encoder": {**SIZES, "hidden_size": 6, "model_type": "mega"},
        "decoder": {**SIZES, **CAUSAL, "add_cross_attention": True, "model_type": "mega"},
    }
    config = transformers.EncoderDecoderConfig(**sides, decoder_start_token_id=2, pad_token_id=1, eos_token_id=2)
    model = transformers.EncoderDecoderModel(config).eval()
    randomise(model)
    return model


@torch.no_grad()
def randomise(model: Any) -> None:
    for parameter in model.parameters():
        parameter.add_(0.3 * torch.randn(parameter.shape))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(0.3 * torch.randn(buffer.shape))
        elif name.endswith("running_var"):
            buffer.add_(torch.rand(buffer.shape))


def inputs_of(model: Any) -> dict[str, torch.Tensor]:
    """Two rows of ids (or values), the second padded on the right; targets for an encoder-decoder."""
    name, random = type(model).__name__, torch.Generator().manual_seed(5)
    if getattr(model.config, "input_type", "tokens") == "values":
        return {"input_values": torch.randn(2, 7, generator=random)}
    shape = (2, 2, 7) if name == "MegaForMultipleChoice" else (2, 7)
    ids = torch.randint(3, 29, shape, generator=random)
    mask = torch.ones(shape, dtype=torch.int64)
    mask[1, ..., 4:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if getattr(model.config, "add_token_type_embeddings", False):
        inputs["token_type_ids"] = torch.randint(0, 2, shape, generator=random)
    if model.config.is_encoder_decoder:
        length = model.config.decoder.chunk_size if model.config.decoder.use_chunking else 5
        inputs["decoder_input_ids"] = torch.randint(3, 31, (2, length), generator=random)
    if name == "MegaForSequencePairClassification":
        inputs |= {"pair_input_ids": ids.flip(1)[:, :5].clone(), "pair_attention_mask": mask[:, :5].clone()}
    return inputs


@torch.no_grad()
def outputs_of(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The outputs that are tensors."""
    options = {"use_cache": False} if model.can_generate() else {}
    return {name: x.contiguous() for name, x in model(**inputs, **options).items() if torch.is_tensor(x)}


def save(model: Any, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    return folder
