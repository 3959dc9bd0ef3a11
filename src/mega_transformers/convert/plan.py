"""The plan of a conversion, decided and checked before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .arguments import Arguments
from .errors import ConversionError
from .reference import Weights

CHOICES = 2
"""The number of choices in random inputs of a multiple-choice model."""
ZEROS = None
"""In place of a source's name: zeros, for a tensor that the source lacks and that changes nothing."""

Results = dict[str, tuple[Tensor, Tensor | None]]
"""Outputs by name, each with a mask of its meaningful entries, or None if all are."""


@dataclass(frozen=True)
class Inputs:
    """Describes a model's inputs, so that random ones can be made.

    Args:
        kind: `tokens`, `pairs` of sequences, `text to text`, `choices`, `values`, or `tokens and source` for a decoder
            that is given an encoder's hidden states.
        vocab_size: Size of the vocabulary.
        pad: Id of padding, or None.
        target_vocab_size: Size of the decoder's vocabulary, for text to text.
        types: Number of token types; 0 without them.
        source_width: Width of an encoder's hidden states.
        limit: Most tokens, or None.
        border: Lengths at which the computation changes: chunks, lags.
    """

    kind: str = "tokens"
    vocab_size: int = 0
    pad: int | None = 1
    target_vocab_size: int = 0
    types: int = 0
    source_width: int = 0
    limit: int | None = None
    borders: tuple[int, ...] = ()


@dataclass
class Plan:
    """A conversion.

    Args:
        source: The detected format, for people: "language model of fairseq".
        model_class: The class of the result.
        config: Its configuration.
        tensors: All tensors of the source.
        names: Our name of every tensor to write -> the source's name, or `ZEROS`.
        dropped: The source's name of a tensor that is left out -> the reason.
        inputs: The inputs of the model.
        evaluate: The source's own arithmetic: weights and the model's keyword arguments -> outputs.
        evaluate_trunk: The same for the model without a head: `last_hidden_state`.
        pipeline_tag: The hub's name of the task.
        generation: Fields of generation_config.json, or None for a model that does not generate.
        closed: Whether the source's code puts </s> after a text.
        start: The token that begins its output.
        first: A token that it puts before a text, or None.
        added_tokens: Tokens that it adds after a dictionary, if the vocabulary is larger by that number.
        settings: The origin of sizes, for messages: "args".
        arguments: The settings themselves; those that nothing read are reported.
        model_arguments: Arguments of `from_pretrained`.
        notes: Other notes for the user.
        facts: Other facts about the source, for the model card.
    """

    source: str
    model_class: type[Any]
    config: Any
    tensors: Mapping[str, Tensor]
    names: dict[str, str | None]
    dropped: dict[str, str]
    inputs: Inputs
    evaluate: Callable[[Weights, dict[str, Tensor]], Results]
    evaluate_trunk: Callable[[Weights, dict[str, Tensor]], Results]
    pipeline_tag: str
    generation: dict[str, Any] | None = None
    closed: bool = True
    start: str = "<s>"
    first: str | None = None
    added_tokens: tuple[str, ...] = ()
    settings: str = "args"
    arguments: Arguments | None = None
    model_arguments: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        """Name of the model's class."""
        return self.model_class.__name__


@dataclass(frozen=True)
class KeyMap:
    """The weight names of one kind of model, as data.

    Args:
        prefixes: The source's prefix -> ours; the longest match wins. The rest of the name stays, except within
            `layer`.
        layer: Within a layer, the source's name, or its part before a dot -> ours.
        layers: The source's prefixes of a layer's number and its names.
        dropped: Suffixes of names that are left out -> the reason.
    """

    prefixes: Mapping[str, str]
    layer: Mapping[str, str]
    layers: tuple[str, ...]
    dropped: Mapping[str, str]

    def apply(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, str | None], dict[str, str]]:
        """Our names -> the source's, and the source's names that are left out -> the reason.

        Raises:
            ConversionError: for names without a mapping, and for two names that map to one.
        """
        names: dict[str, str | None] = {}
        dropped: dict[str, str] = {}
        unknown = []
        for name in tensors:
            reason = next((why for ending, why in self.dropped.items() if name.endswith(ending)), None)
            if reason is not None:
                dropped[name] = reason
                continue
            ours = self._translate(name)
            if ours is None:
                unknown.append(name)
            elif ours in names:
                raise ConversionError(f"{names[ours]} and {name} are both {ours}; the checkpoint mixes two models")
            else:
                names[ours] = name
        if unknown:
            shown = ", ".join(unknown[:3]) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
            raise ConversionError(f"the checkpoint holds weights that no Mega of this kind has: {shown}")
        return names, dropped

    def _translate(self, name: str) -> str | None:
        fitting = [prefix for prefix in self.prefixes if name.startswith(prefix)]
        if not fitting:
            return None
        prefix = max(fitting, key=len)
        rest = name.removeprefix(prefix)
        if prefix in self.layers:
            number, _, inside = rest.partition(".")
            if not number.isdigit() or not inside:
                return None
            renamed = [known for known in self.layer if inside == known or inside.startswith(known + ".")]
            if renamed:
                known = max(renamed, key=len)
                inside = self.layer[known] + inside.removeprefix(known)
            rest = f"{number}.{inside}"
        return self.prefixes[prefix] + rest


def count_layers(tensors: Mapping[str, Tensor], *prefixes: str) -> int:
    """The number of layers below the first of `prefixes` that occurs.

    Raises:
        ConversionError: if a number is missing.
    """
    for prefix in prefixes:
        found = {name.removeprefix(prefix).partition(".")[0] for name in tensors if name.startswith(prefix)}
        numbers = sorted(int(number) for number in found if number.isdigit())
        if numbers:
            if numbers != list(range(len(numbers))):
                raise ConversionError(f"layers are missing; the checkpoint has {prefix}N for N in {numbers}")
            return len(numbers)
    return 0


def check_layers(tensors: Mapping[str, Tensor], stated: int, where: str, *prefixes: str) -> None:
    """Refuses settings with another number of layers than the checkpoint."""
    found = count_layers(tensors, *prefixes)
    if found != stated:
        raise ConversionError(f"{where}={stated}, but the checkpoint holds {found} layers")


def made(settings: str, make: Callable[[], Any]) -> Any:
    """The result of `make` for unchecked settings.

    Raises:
        ConversionError: in place of its errors.
    """
    try:
        return make()
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, OverflowError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConversionError(f"{settings}: {reason}") from error


def complete(plan: Plan) -> dict[str, torch.Size]:
    """The shape of every tensor to write, by our name; tied weights are written once.

    Raises:
        ConversionError: if the model of these settings has other weights than the checkpoint, or other shapes.
    """
    shapes, tied = _model_shapes(plan)
    for name, kept_name in tied.items():
        if name not in plan.names:
            continue
        theirs, kept = plan.names.pop(name), plan.names.get(kept_name)
        if theirs is None:
            continue
        if kept is None:
            plan.names[kept_name] = theirs
        elif not torch.equal(plan.tensors[theirs], plan.tensors[kept]):
            raise ConversionError(
                f"{plan.settings}: {theirs} and {kept} should be one tensor, but their values differ"
            )
        else:
            plan.dropped[theirs] = f"the same as {kept}"
    missing = sorted(shapes.keys() - plan.names.keys())
    if missing:
        raise ConversionError(_count(missing, f"{plan.settings} make a model with weights that the checkpoint lacks"))
    extra = sorted(theirs or ours for ours, theirs in plan.names.items() if ours not in shapes)
    if extra:
        raise ConversionError(_count(extra, f"{plan.settings} make a model without weights that the checkpoint holds"))
    for ours, theirs in plan.names.items():
        if theirs is None:
            continue
        shape, wanted = plan.tensors[theirs].shape, shapes[ours]
        grows = ours.endswith("rel_pos_bias.rel_pos_bias") and shape.numel() < wanted.numel()
        if shape != wanted and not (grows and len(shape) == 1):
            raise ConversionError(f"{theirs} has the shape {tuple(shape)}, but the settings make it {tuple(wanted)}")
    return shapes


def _count(names: list[str], message: str) -> str:
    return f"{message}: {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _model_shapes(plan: Plan) -> tuple[dict[str, torch.Size], dict[str, str]]:
    """Shapes of the model's tensors by name, and for tied tensors the other names -> the name to write."""
    with torch.device("meta"):
        model = made(plan.settings, lambda: plan.model_class(plan.config, **plan.model_arguments))
    targets = getattr(model, "all_tied_weights_keys", {})
    same: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        same.setdefault(id(parameter), []).append(name)
    tied: dict[str, str] = {}
    for names in same.values():
        kept = next((name for name in names if name not in targets), names[0])
        tied |= {name: kept for name in names if name != kept}
    return {name: tensor.shape for name, tensor in model.state_dict().items() if name not in tied}, tied
