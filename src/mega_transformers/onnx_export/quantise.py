"""Writes graphs with 8-bit weights in linear layers and embeddings, and measures the loss of precision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..assets import RECIPES
from ..models.mega.modeling_mega import MegaForCausalLM, MegaForMaskedLM
from ..models.mega.modeling_mega_seq2seq import MegaForConditionalGeneration
from .check import example_inputs, padded, start_token
from .exporting import quiet
from .graphs import CROSS, DECODER, ENCODER, MODEL, ExportError, longest_row
from .running import Decoder, Session

PIECE = 256
"""Tokens of a piece of text."""
PIECES = 16
WORDS = 64
"""The number of sources for an encoder-decoder if the text is the sample: its first words."""
MASKED_EVERY = 7
IGNORED = -100


@dataclass(frozen=True)
class Loss:
    """The cost of 8 bits.

    Attributes:
        measured_on: The data of the numbers.
        tokens: The number of numbers or choices.
        agreement: The share of them with the same most likely choice.
        loss: Cross entropy of the float graph in nats per token; None without a text to predict.
        int8_loss: The same for the 8-bit graph.
    """

    measured_on: str
    tokens: int
    agreement: float
    loss: float | None = None
    int8_loss: float | None = None


def quantise(source: Path, target: Path) -> None:
    """Writes a graph with 8-bit weights: of linear layers, one scale per output, and of embeddings.

    Inputs of linear layers are rounded at run time (dynamic quantisation). Everything else stays as it is, above all
    the parameters of the averages.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(str(source), load_external_data=False).graph
    matrices = {x.name for x in graph.initializer if len(x.dims) == 2 and x.data_type == onnx.TensorProto.FLOAT}
    weight = {"MatMul": 1, "Gather": 0}
    nodes = [n.name for n in graph.node if n.op_type in weight and n.input[weight[n.op_type]] in matrices]
    with quiet(None):
        quantize_dynamic(
            str(source),
            str(target),
            op_types_to_quantize=list(weight),
            nodes_to_quantize=nodes,
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=source.with_name(source.name + ".data").exists(),
        )


def losses(model: Any, tokenizer: Any, folder: Path, suffix: str, text: str | None) -> Loss:
    """The loss of precision of the graphs `NAME{suffix}.onnx` against `NAME.onnx`.

    Args:
        model: The model.
        tokenizer: Its tokenizer, or None.
        folder: The folder of both.
        suffix: ".int8".
        text: The text to measure on. Default: a bundled sample.

    Raises:
        ExportError: for a text without a token to predict.
    """
    names = [name for name in (ENCODER, MODEL, DECODER) if (folder / f"{name}.onnx").is_file()]
    exact, rounded = ({n: Session(folder / f"{n}{end}.onnx") for n in names} for end in ("", suffix))
    with torch.no_grad():
        if tokenizer is not None and isinstance(model, MegaForConditionalGeneration):
            return _of_written(model, tokenizer, exact, rounded, text)
        if tokenizer is not None and isinstance(model, (MegaForMaskedLM, MegaForCausalLM)):
            return _of_text(model, tokenizer, exact[MODEL], rounded[MODEL], text)
        if isinstance(model, MegaForConditionalGeneration):
            raise ExportError("--int8 measures outputs for words, which needs a tokenizer, but the folder has none")
        return _of_random(model, exact[MODEL], rounded[MODEL])


def _of_text(model: Any, tokenizer: Any, exact: Session, rounded: Session, text: str | None) -> Loss:
    """On the tokens of a text: the next ones, or every seventh under a mask."""
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    ids = torch.tensor(tokenizer(text or _sample(), add_special_tokens=False, verbose=False)["input_ids"])
    masked = isinstance(model, MegaForMaskedLM)
    if masked and tokenizer.mask_token_id is None:
        raise ExportError("--int8 measures the loss of masked tokens, but the tokenizer has no mask token")
    for piece in ids[: PIECE * PIECES].split(min(PIECE, longest_row(model) or PIECE)):
        given, wanted = piece.clone(), piece.clone()
        if masked:
            hidden = torch.arange(len(piece)) % MASKED_EVERY == MASKED_EVERY // 2
            given[hidden], wanted[~hidden] = tokenizer.mask_token_id, IGNORED
        else:
            wanted = F.pad(piece[1:], (0, 1), value=IGNORED)
        inputs = {"input_ids": given[None], "attention_mask": torch.ones(1, len(piece), dtype=torch.int64)}
        if model.mega.config.add_token_type_embeddings:
            inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        found.append((exact(inputs)["logits"][0], rounded(inputs)["logits"][0], wanted))
    if not any((wanted != IGNORED).any() for _, _, wanted in found):
        raise ExportError("--text-file holds too little text: it has no token to predict")
    return _loss("masked words" if masked else "next words", found)


def _of_written(
    model: MegaForConditionalGeneration,
    tokenizer: Any,
    exact: dict[str, Session],
    rounded: dict[str, Session],
    text: str | None,
) -> Loss:
    """On outputs of the float graphs for lines of a text: whether the 8-bit graphs would choose the same tokens."""
    sources = list(dict.fromkeys(w.strip(".,;:!?\"'-").lower() for w in _sample().split()))[:WORDS]
    if text is not None:
        sources = [line.strip() for line in text.splitlines() if line.strip()]
    limit = longest_row(model)
    found = []
    for source in filter(None, sources):
        ids = torch.tensor([tokenizer(source, truncation=limit is not None, max_length=limit)["input_ids"]])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if model.model.encoder.config.add_token_type_embeddings:
            inputs["token_type_ids"] = torch.zeros_like(ids)
        mask = {f"{CROSS}mask": inputs["attention_mask"]}
        pair = [
            Decoder(graphs[DECODER], graphs[ENCODER](inputs) | mask, model.model.decoder.config)
            for graphs in (exact, rounded)
        ]
        token = torch.tensor([[start_token(model)]])
        for _ in range(min(2 * ids.shape[1] + 8, limit or PIECE)):
            logits, other = (decoder.step(token) for decoder in pair)
            token = logits[:, -1].argmax(dim=-1, keepdim=True)
            found.append((logits[0], other[0], token[0]))
            if token.item() == model.config.eos_token_id:
                break
    if not found:
        raise ExportError("--text-file holds no line of text")
    return _loss("tokens generated by the float graphs", found)


def _of_random(model: Any, exact: Session, rounded: Session) -> Loss:
    """On random inputs, for models without a text to predict."""
    inputs = example_inputs(model, padded(min(PIECE, longest_row(model) or PIECE), PIECES))
    pairs = [(x, y) for x, y in zip(exact(inputs).values(), rounded(inputs).values())]
    same = torch.cat([(x.argmax(-1) == y.argmax(-1)).flatten() for x, y in pairs])
    return Loss("random inputs", same.numel(), same.float().mean().item())


def _loss(what: str, found: list[tuple[Tensor, Tensor, Tensor]]) -> Loss:
    """Of logits (L, V), 8-bit ones, and ids (L,)."""
    logits, other, wanted = (torch.cat(parts) for parts in zip(*found))
    counted = wanted != IGNORED
    logits, other, wanted = logits[counted], other[counted], wanted[counted]
    same = (logits.argmax(-1) == other.argmax(-1)).float().mean().item()
    return Loss(what, len(wanted), same, F.cross_entropy(logits, wanted).item(), F.cross_entropy(other, wanted).item())


def _sample() -> str:
    return (RECIPES / "sample" / "test.txt").read_text(encoding="utf-8")
