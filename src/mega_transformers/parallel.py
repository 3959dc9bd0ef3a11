"""Sequence parallelism: a row is cut over processes, whose only traffic is the EMA's state at the cuts.

With attention in chunks, a token depends on other chunks by the EMA alone, and the EMA is linear. So each process
computes its piece, and one all-gather per layer, of (batch, width, states) numbers a direction, connects the pieces;
the backward pass has another. The traffic does not depend on the length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from .layers.block import MegaBlock
from .long_inputs import check_left_padding
from .models.mega.inputs_mega import document_starts_of
from .ops.ema import EMACoefficients, ema_boundary, ema_entering
from .ops.layout import AttentionLayout, positions_in_documents

# arguments of (batch, length), and what follows the end of a row in them
PADDING = {
    **dict.fromkeys(("input_ids", "inputs_embeds", "token_type_ids", "attention_mask"), 0),
    **dict.fromkeys(("labels", "shift_labels"), -100),
}
HEADS = ("MegaModel", "MegaForMaskedLM", "MegaForCausalLM")


def parallelize_sequence(model: nn.Module, group: dist.ProcessGroup | DeviceMesh) -> nn.Module:
    """Makes every forward pass of a model compute one piece of its rows, this process's.

    All processes of the group are given the same whole rows: `input_ids` or `inputs_embeds`, `attention_mask`,
    `token_type_ids`, `labels`, and for packed rows `position_ids`, `cu_seq_lens_q` or `seq_idx`. Each returns the
    outputs of its piece, ceil(length / (processes * chunk)) * chunk tokens long, padded at the end of a row;
    `gather_sequence` joins pieces. The mean of the losses over the processes is the loss of the whole rows, and the
    mean of the gradients its gradient: data parallelism (DDP, FSDP) computes just these means. Under transformers'
    Trainer, `training.sequence_parallel.SequenceParallelTrainer` does all this.

    Args:
        model: A `MegaModel`, `MegaForMaskedLM` or `MegaForCausalLM` with chunks of attention; wrap it first, then
            shard or replicate its parameters.
        group: The processes of a row in their order; a `DeviceMesh` of one dimension.

    Returns:
        The model, changed in place.

    Raises:
        ValueError: for full attention, a truncated EMA, cross-attention, and other heads; in a forward pass for a
            cache, and for documents or padding on the left that put a cut into a chunk.
    """
    config: Any = getattr(model, "config", None)
    if type(model).__name__ not in HEADS:
        raise ValueError(f"sequence parallelism is for {', '.join(HEADS)}; got {type(model).__name__}")
    check_can_be_cut(config)
    pieces = _Pieces(_process_group(group), config)
    blocks = [block for block in model.modules() if isinstance(block, MegaBlock)]
    cast(Any, model).sequence_hooks = [
        model.register_forward_pre_hook(pieces.cut, with_kwargs=True),
        *(block.register_forward_pre_hook(pieces.connect, with_kwargs=True) for block in blocks),
    ]
    return model


def unparallelize_sequence(model: nn.Module) -> nn.Module:
    """Makes a model compute whole rows again, each process its own; nothing for one that does so already."""
    for hook in vars(model).pop("sequence_hooks", []):
        hook.remove()
    return model


def check_can_be_cut(config: Any) -> None:
    """Refuses the configuration of a Mega whose rows cannot be cut with a ValueError that names the field."""
    if not config.use_chunking:
        raise ValueError(
            "use_chunking=False: full attention sees the pieces of other processes; set use_chunking=True"
        )
    if config.truncation is not None:
        raise ValueError(f"truncation={config.truncation}: processes exchange the EMA's states only; set it to None")
    if config.add_cross_attention:
        raise ValueError("add_cross_attention=True: a decoder with an encoder cannot be cut over processes")


def cut_sequence(
    x: torch.Tensor, group: dist.ProcessGroup | DeviceMesh, chunk_size: int, padding: int = 0
) -> torch.Tensor:
    """The piece (B, piece, ...) that this process has of whole rows (B, length, ...), as the model cuts them.

    A piece is ceil(length / (processes * chunk)) chunks long; `padding` follows the end of a row.
    """
    group = _process_group(group)
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    piece = _piece_length(x.shape[1], size, chunk_size)
    missing = size * piece - x.shape[1]
    whole = F.pad(x, (0, 0) * (x.dim() - 2) + (0, missing), value=padding)
    return whole[:, rank * piece : (rank + 1) * piece].contiguous()


def gather_sequence(x: torch.Tensor, group: dist.ProcessGroup | DeviceMesh, length: int) -> torch.Tensor:
    """Joins the pieces of all processes to whole rows, (B, length, ...). Not differentiable.

    Args:
        x: (B, piece, ...), the piece of this process.
        group: As in `parallelize_sequence`.
        length: Tokens of the whole rows.
    """
    return _gathered(x.detach(), _process_group(group)).transpose(0, 1).flatten(1, 2)[:, :length]


def aligned_labels(model: nn.Module, labels: torch.Tensor) -> torch.Tensor:
    """Labels (B, L) at the positions whose logits predict them: those of a causal model one to the left."""
    return F.pad(labels[:, 1:], (0, 1), value=-100) if _shifts_labels(model) else labels


def _shifts_labels(model: nn.Module) -> bool:
    # FSDP2 gives a model a class of its own that is derived from it
    return any(kind.__name__ == "MegaForCausalLM" for kind in type(model).__mro__)


def _piece_length(length: int, processes: int, chunk_size: int) -> int:
    return -(-length // (processes * chunk_size)) * chunk_size


def _process_group(group: dist.ProcessGroup | DeviceMesh) -> dist.ProcessGroup:
    return group.get_group() if isinstance(group, DeviceMesh) else group


@dataclass
class _Cut:
    """What processes know of the batch of the present forward pass."""

    piece: int
    reset: torch.Tensor | None = None  # (B, piece) of this process
    passes: torch.Tensor | None = None  # (processes, B)


class _Pieces:
    """The hooks of a model."""

    def __init__(self, group: dist.ProcessGroup, config: Any) -> None:
        self.group, self.chunk, self.causal = group, config.chunk_size, config.is_decoder
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.now = _Cut(0)

    def cut(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Whole rows -> this process's piece of them."""
        if args:
            raise ValueError("under sequence parallelism give all arguments by name")
        if kwargs.get("cache") is not None or kwargs.get("use_cache"):
            raise ValueError("a cache cannot be kept under sequence parallelism; set use_cache=False")
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        rows = kwargs.get("input_ids", kwargs.get("inputs_embeds"))
        if rows is None:
            raise ValueError("give input_ids or inputs_embeds")
        batch, length = rows.shape[:2]
        piece = _piece_length(length, self.size, self.chunk)
        starts, _ = document_starts_of(
            (batch, length),
            kwargs.pop("position_ids", None),
            kwargs.pop("cu_seq_lens_q", None),
            kwargs.pop("seq_idx", None),
        )
        for name in ("cu_seq_lens_k", "max_length_q", "max_length_k"):
            kwargs.pop(name, None)
        missing = self.size * piece - length
        if missing and "attention_mask" not in kwargs:
            kwargs["attention_mask"] = torch.ones(batch, length, dtype=torch.int64, device=rows.device)
        self._count_labels(model, kwargs)
        check_left_padding(kwargs.get("attention_mask"), self.chunk)
        self.now = _Cut(piece)
        mine = slice(self.rank * piece, (self.rank + 1) * piece)
        if starts is not None:
            kwargs["position_ids"] = self._documents(F.pad(starts, (0, missing), value=False), mine)
        for name, value in PADDING.items():
            if name in kwargs:
                kwargs[name] = cut_sequence(kwargs[name], self.group, self.chunk, value)
        return args, {**kwargs, **({"use_cache": False} if self.causal else {})}

    def _count_labels(self, model: nn.Module, kwargs: dict[str, Any]) -> None:
        """Shifts labels before a cut parts them from their logits; divides the loss by this process's share."""
        labels = kwargs.get("labels")
        if labels is None:
            return
        if _shifts_labels(model) and "shift_labels" not in kwargs:
            kwargs["shift_labels"] = aligned_labels(model, labels)
        count = kwargs.get("num_items_in_batch")
        if count is None:
            count = (kwargs.get("shift_labels", labels) != -100).sum()
        kwargs["num_items_in_batch"] = count / self.size

    def _documents(self, starts: torch.Tensor, mine: slice) -> torch.Tensor:
        """Positions (B, piece) in this process's documents, from where all documents start (B, processes * piece)."""
        positions = positions_in_documents(starts)
        cuts = positions[:, :: self.now.piece]
        if bool((cuts % self.chunk).any()):
            row, process = (cuts % self.chunk).nonzero()[0].tolist()
            raise ValueError(
                f"row {row}: the cut at column {process * self.now.piece} is {cuts[row, process]} tokens into a "
                f"document, not a multiple of chunk_size={self.chunk}; pad documents to whole chunks"
            )
        self.now.reset = starts[:, mine]
        self.now.passes = ~starts.unflatten(1, (self.size, -1)).any(2).T
        return positions[:, mine]

    def connect(self, block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """A block's layout, with the exchange of states; all blocks share one."""
        layout: AttentionLayout = kwargs["layout"]
        if "sequence" not in layout.plans:
            layout.plans["sequence"] = replace(layout, reset=self.now.reset, exchange=self._exchange)
        return args, {**kwargs, "layout": layout.plans["sequence"]}

    def _exchange(self, x: torch.Tensor, coefficients: EMACoefficients) -> torch.Tensor:
        bidirectional = coefficients.input.shape[0] > x.shape[-1]
        left = ema_boundary(x, coefficients, bidirectional=bidirectional, reset=self.now.reset)
        return _Entering.apply(left, coefficients.log_decay, self, bidirectional, self.now)


class _Entering(torch.autograd.Function):
    """The states (B, D', N) that enter this process's piece, of those that every piece leaves."""

    @staticmethod
    def forward(ctx, left, log_decay, pieces, bidirectional, cut):
        gathered = _gathered(left, pieces.group)
        ctx.save_for_backward(gathered, log_decay)
        ctx.rest = pieces, bidirectional, cut
        return _entering(gathered, log_decay, pieces, bidirectional, cut)[pieces.rank]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        pieces, bidirectional, cut = ctx.rest
        with torch.enable_grad():
            gathered, log_decay = (x.detach().requires_grad_() for x in ctx.saved_tensors)
            entering = _entering(gathered, log_decay, pieces, bidirectional, cut)
            (of_decay,) = torch.autograd.grad(entering[pieces.rank], log_decay, gradient, retain_graph=True)
            # what this piece left entered the pieces of all
            (of_left,) = torch.autograd.grad(entering, gathered, _gathered(gradient, pieces.group))
        return of_left[pieces.rank], of_decay, None, None, None


def _entering(
    gathered: torch.Tensor, log_decay: torch.Tensor, pieces: _Pieces, bidirectional: bool, cut: _Cut
) -> torch.Tensor:
    lengths: Sequence[int] = [cut.piece] * pieces.size
    return ema_entering(gathered, log_decay, lengths, bidirectional=bidirectional, passes=cut.passes)


def _gathered(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """(processes, *x.shape)"""
    every = x.new_empty(dist.get_world_size(group), *x.shape)
    dist.all_gather(list(every), x.contiguous(), group=group)
    return every
