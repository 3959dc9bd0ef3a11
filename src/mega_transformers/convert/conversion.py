"""Runs a conversion from beginning to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import conversion_card, fairseq, masked_lm_folder, transformers_folder
from .arguments import Arguments
from .dictionary import SPECIAL, make_tokenizer, read_dictionary
from .errors import ConversionError
from .fairseq_checkpoint import read_checkpoint
from .plan import Plan, complete, made
from .reading import Progress
from .verification import (
    TOLERANCE,
    Deviation,
    borders_not_reached,
    compare,
    compute_in_float32,
    expected_results,
    make_cases,
)
from .writing import check_output, new_folder, write_weights

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
AUTO = "auto"
TARGET = "target_tokenizer"
# arguments without a counterpart -> the reason
WITHOUT_PLACE = {
    "encoder_layerdrop": "parsed, but never used by the authors' code",
    "decoder_layerdrop": "parsed, but never used by the authors' code",
    "encoder_embed_path": "where the embeddings were initialised from",
    "decoder_embed_path": "where the embeddings were initialised from",
    "apply_bert_init": "the initial weights",
    "adaptive_softmax_dropout": "dropout of an adaptive softmax, which the model does not have",
}


@dataclass
class ConversionReport:
    """Result of a conversion.

    Args:
        folder: Folder of the new model.
        source: What was recognised, in words.
        architecture: Class that loads the model.
        dtype: Number format of the weights.
        size: Size of the weights in bytes.
        mapped: For each pattern of names: the source's name, ours, and how many there are; * stands for a layer
            number.
        dropped: Names of the source that were left out, with the reasons.
        deviations: What was measured; empty without verification.
        notes: What else a user should know.
    """

    folder: Path
    source: str
    architecture: str
    dtype: str
    size: int
    mapped: list[tuple[str, str, int]]
    dropped: list[tuple[str, str]]
    deviations: list[Deviation] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def convert_checkpoint(
    source: Path | str,
    output: Path | str,
    *,
    tokenizer: Path | str | None = None,
    dictionaries: Sequence[Path | str] = (),
    dtype: str = AUTO,
    averaged: bool = False,
    verify: bool = True,
    force: bool = False,
    progress: Progress = lambda *_: None,
) -> ConversionReport:
    """Converts a checkpoint of fairseq, of a pretrained masked language model or of transformers 4.

    Args:
        source: A file of fairseq or one of its parts, or a folder.
        output: Folder to write, which must not exist yet.
        tokenizer: Folder of the tokenizer for the model. Default: the source's own, if it has one.
        dictionaries: dict.txt files of fairseq, from which a tokenizer is made; for an encoder-decoder with separate
            vocabularies the source's and the target's.
        dtype: Number format of the weights: float32, float16, bfloat16, or auto for that of the source.
        averaged: Whether to convert the moving average of the weights that a file of fairseq may also contain.
        verify: Whether to compare the result with an independent evaluation of the source.
        force: Whether to replace an existing model.
        progress: Called with a description, how much is done, and how much there is.

    Returns:
        The report of the conversion.

    Raises:
        ConversionError: for a source that cannot be converted, and for a result that deviates from it. Then nothing
            is written.
    """
    source, output = Path(source), Path(output)
    if dtype not in (AUTO, *DTYPES):
        raise ConversionError(f"dtype={dtype!r} is unknown; the known values are {', '.join((AUTO, *DTYPES))}")
    if not source.exists():
        raise ConversionError(f"there is no file or folder {source}")
    check_output(output, source, force)
    try:
        plan, files = recognise(source, averaged, progress)
    except OSError as error:
        raise ConversionError(f"{error.filename or source} cannot be read: {error.strerror or error}") from error
    shapes = complete(plan)
    stored = DTYPES.get(dtype, _dtype_of(plan))
    tokenizers = _tokenizers(plan, source, tokenizer, [Path(path) for path in dictionaries])
    cases = make_cases(plan) if verify else []
    if verify:
        for border in borders_not_reached(plan):
            plan.notes.append(
                f"no random input was longer than {border} tokens, so the end of a chunk or of the average was not "
                "checked"
            )
    mapped = _mapped(plan)
    if plan.arguments is not None:
        plan.dropped |= unused(plan.arguments)
    deviations: list[Deviation] = []
    with new_folder(output) as folder:
        _write_settings(plan, stored, folder)
        for where, made in tokenizers.items():
            made.save_pretrained(folder / where)
        size = write_weights(plan, shapes, stored, folder, progress)
        if verify:
            expected = expected_results(plan, cases, stored, progress)
            # frees the source's memory before the model takes as much
            plan.tensors = {}
            deviations = compare(_load(plan, folder), cases, expected, progress)
            _refuse_deviations(deviations)
        name = str(stored).removeprefix("torch.")
        text = conversion_card.render(output.name, plan, files, name, deviations, bool(tokenizers))
        (folder / "README.md").write_text(text, encoding="utf-8")
    return ConversionReport(
        folder=output,
        source=plan.source,
        architecture=plan.architecture,
        dtype=name,
        size=size,
        mapped=mapped,
        dropped=conversion_card.summary(plan.dropped),
        deviations=deviations,
        notes=plan.notes,
    )


def recognise(source: Path, averaged: bool, progress: Progress) -> tuple[Plan, list[Path]]:
    """The plan for `source`, and the source files.

    Raises:
        ConversionError: for an unknown format or a damaged file.
    """
    if source.is_dir():
        names = (masked_lm_folder.SETTINGS, masked_lm_folder.ENCODER, masked_lm_folder.HEAD)
        if any((source / name).is_file() for name in names):
            plan = masked_lm_folder.plan_masked_lm(source, progress)
            return plan, [source / name for name in names]
        if (source / transformers_folder.CONFIG).is_file():
            plan = transformers_folder.plan_transformers(source, progress)
            return plan, transformers_folder.files_of(source)
    checkpoint = read_checkpoint(source, averaged, progress)
    return fairseq.plan_checkpoint(checkpoint), checkpoint.files


def unused(arguments: Arguments) -> dict[str, str]:
    """Arguments that nothing read -> the reason: the model's one by one, the training's together."""
    left = sorted(name for name in arguments.values if name not in arguments.read)
    known = {f"{arguments.where}.{name}": WITHOUT_PLACE[name] for name in left if name in WITHOUT_PLACE}
    others = [name for name in left if name not in WITHOUT_PLACE]
    if others:
        shown = f"{', '.join(others[:4])}{', …' if len(others) > 4 else ''}"
        known[f"{arguments.where}: {len(others)} more"] = f"no part in this model: {shown}"
    return known


def _dtype_of(plan: Plan) -> torch.dtype:
    """The dtype of most of the source's numbers; float32 if that is not one of `DTYPES`."""
    counts: dict[torch.dtype, int] = {}
    for tensor in plan.tensors.values():
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    most = max(counts, key=lambda dtype: counts[dtype])
    return most if most in DTYPES.values() else torch.float32


def _mapped(plan: Plan) -> list[tuple[str, str, int]]:
    counts: dict[tuple[str, str], int] = {}
    for ours, theirs in plan.names.items():
        pair = ("(zeros)" if theirs is None else conversion_card.pattern(theirs), conversion_card.pattern(ours))
        counts[pair] = counts.get(pair, 0) + 1
    return [(*pair, count) for pair, count in counts.items()]


def _write_settings(plan: Plan, dtype: torch.dtype, folder: Path) -> None:
    """config.json and, for models that generate text, generation_config.json."""
    from transformers import GenerationConfig

    plan.config.architectures = [plan.architecture]
    plan.config.dtype = dtype
    plan.config.save_pretrained(folder)
    if plan.generation is not None:
        fields = {name: value for name, value in plan.generation.items() if name != "transformers_version"}
        generation = made(transformers_folder.GENERATION, lambda: GenerationConfig(**fields))
        # unchanged: transformers 5 refuses to save some settings that 4 saved
        generation.to_json_file(folder / transformers_folder.GENERATION, use_diff=True)


def _tokenizers(plan: Plan, source: Path, given: Path | str | None, dictionaries: list[Path]) -> dict[str, Any]:
    """Tokenizers by their folder; "" is the model's own.

    Raises:
        ConversionError: for files that are missing, damaged or do not match the vocabulary.
    """
    if given is not None and dictionaries:
        raise ConversionError("give a tokenizer or a dictionary, not both")
    if not dictionaries:
        folder = source if given is None and source.is_dir() and _has_tokenizer(source) else given
        return {} if folder is None else {"": _loaded(plan, Path(folder))}
    sizes = [plan.inputs.vocab_size, plan.inputs.target_vocab_size or plan.inputs.vocab_size]
    if not plan.inputs.vocab_size:
        raise ConversionError(f"{plan.source}: it does not read text; leave out the dictionary")
    if len(dictionaries) > (2 if plan.inputs.target_vocab_size else 1):
        raise ConversionError(f"{plan.source}: {len(dictionaries)} dictionaries are too many")
    if len(dictionaries) == 1 and sizes[0] != sizes[1]:
        raise ConversionError(
            f"the encoder has {sizes[0]} words and the decoder {sizes[1]}: give two dictionaries, the source's first"
        )
    return {where: _from_dictionary(plan, path, size) for where, path, size in zip(("", TARGET), dictionaries, sizes)}


def _from_dictionary(plan: Plan, path: Path, size: int) -> Any:
    words = read_dictionary(path)
    added = [word for word in plan.added_tokens if word not in words]
    if len(words) < size:
        words += added[: size - len(words)]
    if len(words) != size:
        raise ConversionError(
            f"{path} makes {len(words)} tokens, including fairseq's own {len(SPECIAL)}, but the model has {size}"
        )
    return make_tokenizer(words, plan.start, plan.first, plan.closed, plan.inputs.limit)


def _has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file() or all(
        (folder / name).is_file() for name in ("vocab.json", "merges.txt")
    )


def _loaded(plan: Plan, folder: Path) -> Any:
    from transformers import AutoTokenizer

    from ..models.mega.configuration_mega import MegaConfig

    if not folder.is_dir():
        raise ConversionError(f"there is no folder {folder} with a tokenizer")
    try:
        config = plan.config if isinstance(plan.config, MegaConfig) else MegaConfig()
        tokenizer = AutoTokenizer.from_pretrained(folder, config=config)
    except Exception as error:  # any error means a fault in the tokenizer's files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConversionError(f"no tokenizer can be loaded from {folder}: {reason}") from error
    if plan.inputs.vocab_size and len(tokenizer) > plan.inputs.vocab_size:
        raise ConversionError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens, but the model only {plan.inputs.vocab_size}"
        )
    return tokenizer


def _load(plan: Plan, folder: Path) -> Any:
    """Loads the written model as a user would, but to compute in float32.

    Raises:
        ConversionError: if the file lacks weights or holds others.
    """
    model, loading = made(
        "the converted model",
        lambda: plan.model_class.from_pretrained(folder, output_loading_info=True, **plan.model_arguments),
    )
    amiss = {kind: sorted(map(str, names)) for kind, names in loading.items() if names}
    if amiss:
        raise ConversionError(f"the converted model does not load as it was written: {amiss}")
    compute_in_float32(model)
    return model.eval()


def _refuse_deviations(deviations: list[Deviation]) -> None:
    worst = max(deviations, key=lambda each: each.relative)
    if not worst.relative <= TOLERANCE:
        raise ConversionError(
            f"the converted model deviates from its source: {worst.output} of {worst.case} by {worst.relative:.1e} "
            f"relative, more than {TOLERANCE:.0e}. Nothing was written"
        )
