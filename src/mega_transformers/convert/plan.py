"""What a conversion is to do, decided and checked before anything is written."""

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
"""Choices of a multiple-choice model's random inputs."""
ZEROS = None
"""In place of a source's name: zeros, for what the source does not have and adds nothing."""

Results = dict[str, tuple[Tensor, Tensor | None]]
"""Outputs by the model's names for them, each with a mask of the entries that mean something, or None for all."""


@dataclass(frozen=True)
class Inputs:
    """What a model is given, for random inputs to be made.

    Args:
        kind: `tokens`, `pairs` of sequences, `text to text`, `choices`, `values`, or `tokens and source` for a decoder
            that is given an encoder's hidden states.
        vocab_size: Words of the vocabulary.
        pad: Id of padding, or None.
        target_vocab_size: Words of the decoder's vocabulary, for text to text.
        types: Token types, or 0 for none.
        source_width: Width of an encoder's hidden states.
        limit: Tokens at most, or None.
        border: Lengths beyond which something else happens: chunks, lags.
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
        source: What was recognised, for people: "language model of fairseq".
        model_class: The class that the result is loaded with.
        config: Its configuration.
        tensors: All tensors of the source.
        names: A name of ours for every tensor to write -> the source's name, or `ZEROS`.
        dropped: The source's name of what is left out -> the reason.
        inputs: What the model is given.
        evaluate: The source's own arithmetic: weights and the model's keyword arguments -> its outputs.
        evaluate_trunk: The same for the model without head: `last_hidden_state`.
        pipeline_tag: The hub's name of the task.
        generation: Fields of generation_config.json, or None for a model that writes nothing.
        closed: Whether the source's code puts </s> behind a text.
        start: The token with which it begins what it writes.
        first: What it puts before a text, or None.
        added_tokens: What it adds behind a dictionary, if the vocabulary is larger by as many.
        settings: Where sizes come from, for messages: "args".
        arguments: The settings themselves, of which those that nothing read are told.
        model_arguments: For `from_pretrained`.
        notes: What else a user should know.
        facts: What else is known about the source, for the model card.
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
    """The names of one kind of model, as data.

    Args:
        prefixes: The source's prefix -> ours; the longest that fits is taken. What follows it stays, but for `layer`.
        layer: Within a layer, the source's name or its beginning up to a dot -> ours.
        layers: The source's prefixes behind which a layer's number and its names stand.
        dropped: Endings of names that are left out -> the reason.
    """

    prefixes: Mapping[str, str]
    layer: Mapping[str, str]
    layers: tuple[str, ...]
    dropped: Mapping[str, str]

    def apply(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, str | None], dict[str, str]]:
        """Our names -> the source's, and the source's names that are left out -> why.

        Raises:
            ConversionError: for names that are in no map, and for two that become one.
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
                raise ConversionError(f"{names[ours]} and {name} are both {ours}; the checkpoint is a mixture of two")
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
    """Layers numbered without gap behind the first of `prefixes` that there is.

    Raises:
        ConversionError: for a gap.
    """
    for prefix in prefixes:
        found = {name.removeprefix(prefix).partition(".")[0] for name in tensors if name.startswith(prefix)}
        numbers = sorted(int(number) for number in found if number.isdigit())
        if numbers:
            if numbers != list(range(len(numbers))):
                raise ConversionError(f"layers are missing: there are {prefix}N for N in {numbers}")
            return len(numbers)
    return 0


def check_layers(tensors: Mapping[str, Tensor], stated: int, where: str, *prefixes: str) -> None:
    """Refuses settings that speak of another number of layers than there is."""
    found = count_layers(tensors, *prefixes)
    if found != stated:
        raise ConversionError(f"{where}={stated}, but the checkpoint holds {found} layers")


def made(settings: str, make: Callable[[], Any]) -> Any:
    """What `make` makes of settings that may be anything.

    Raises:
        ConversionError: in place of its errors.
    """
    try:
        return make()
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, OverflowError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConversionError(f"{settings}: {reason}") from error


def complete(plan: Plan) -> dict[str, torch.Size]:
    """The shape of every tensor to be written, by our name; what a model ties is left to be written once.

    Raises:
        ConversionError: if the model that the settings make lacks or has other weights than the checkpoint, or weights
            of other shapes.
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
            raise ConversionError(f"{plan.settings}: {theirs} and {kept} are to be one, but their values differ")
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
    """Shapes of the model's tensors by name, and other names of those that have several -> the one to be written."""
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
