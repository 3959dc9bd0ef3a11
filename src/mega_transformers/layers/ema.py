"""The EMA sub-layer: parameters, residual and activation around `mega_transformers.ops.ema`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from ..ops.autocast import no_autocast
from ..ops.ema import (
    EMACoefficients,
    PackedBlocks,
    ema,
    ema_boundary,
    ema_coefficients,
    ema_continuation,
    packed_blocks,
    packing_size,
)
from ..ops.layout import AttentionLayout

if TYPE_CHECKING:
    from ..models.mega.cache_mega import MegaCacheLayer
    from ..models.mega.configuration_mega import MegaConfig


class MegaMultiDimensionDampedEma(nn.Module):
    """silu(EMA(x) + residual_weight * x) (paper section 3.1; authors' `MultiHeadEMA`).

    Parameters, with D' = 2d if bidirectional else d: `damping_factor`, `decay_factor`, `ema_expansion_matrix`
    (D', N, 1); `kernel_projection_matrix` (D', N); `residual_weight` (d,). They are float32 at least.

    Args:
        config: The configuration.
    """

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.bidirectional = config.bidirectional
        self.truncation = config.truncation
        channels = config.hidden_size * (2 if config.bidirectional else 1)
        states = config.ema_projection_size
        # the decays are too close to 1 for half precision, whatever the dtype of the model
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        self.damping_factor = nn.Parameter(torch.empty(channels, states, 1, dtype=dtype))
        self.decay_factor = nn.Parameter(torch.empty(channels, states, 1, dtype=dtype))
        self.ema_expansion_matrix = nn.Parameter(torch.empty(channels, states, 1, dtype=dtype))
        self.kernel_projection_matrix = nn.Parameter(torch.empty(channels, states, dtype=dtype))
        self.residual_weight = nn.Parameter(torch.empty(config.hidden_size, dtype=dtype))

    def forward(
        self, x: torch.Tensor, layout: AttentionLayout | None = None, cache_layer: MegaCacheLayer | None = None
    ) -> torch.Tensor:
        """Applies the layer.

        Args:
            x: (B, L, d).
            layout: Which tokens are padding, which contributes nothing, and where packed documents start.
            cache_layer: What is remembered of the tokens before, updated in place; not with packed documents, and not
                with `bidirectional`.

        Returns:
            (B, L, d).
        """
        inputs, packed = _real(x, layout), None
        if cache_layer is None:
            coefficients = self.coefficients()
            if layout is not None and layout.reset is not None:
                packed = _packed(layout, layout.reset, packing_size(inputs, coefficients))
            y, _ = ema(
                inputs,
                coefficients,
                bidirectional=self.bidirectional,
                truncation=self.truncation,
                reset=None if layout is None else layout.reset,
                packed=packed,
            )
            if layout is not None and layout.exchange is not None:
                y = y + self._continued(inputs, coefficients, layout)
        else:
            coefficients = cache_layer.remembered("coefficients", self.coefficients)
            state, history = cache_layer.state, cache_layer.history
            y, state = ema(
                inputs, coefficients, truncation=self.truncation, state=state, history=history, return_state=True
            )
            cache_layer.advance(inputs, state, coefficients, self.truncation)
        weight = self.residual_weight
        y = torch.addcmul(y, weight if weight.dtype == x.dtype else weight.to(x.dtype), x)
        return F.silu(y, inplace=not torch.is_grad_enabled())

    def boundary(self, x: torch.Tensor, coefficients: EMACoefficients, layout: AttentionLayout) -> torch.Tensor:
        """The states (B, D', N) that a piece of a row leaves, as `ema_boundary` computes them.

        Args:
            x: (B, L, d), the piece.
            coefficients: What `coefficients` returns.
            layout: Padding and documents of the piece.
        """
        with no_autocast(x.device.type):
            return ema_boundary(_real(x, layout), coefficients, bidirectional=self.bidirectional, reset=layout.reset)

    def _continued(self, x: torch.Tensor, coefficients: EMACoefficients, layout: AttentionLayout) -> torch.Tensor:
        """The contribution of the tokens before and after a piece of a row to its outputs."""
        if self.truncation is not None:
            raise ValueError(
                f"truncation={self.truncation}: pieces exchange only states, which cannot drop old inputs; set "
                "truncation=None"
            )
        assert layout.exchange is not None
        with no_autocast(x.device.type):
            states = layout.exchange(x, coefficients)
            options: Any = {"bidirectional": self.bidirectional, "reset": layout.reset}
            return ema_continuation(states, coefficients, x.shape[1], **options).to(x.dtype)

    def coefficients(self) -> EMACoefficients:
        """The coefficients of the recurrence, computed outside of autocast."""
        with no_autocast(self.damping_factor.device.type):
            return ema_coefficients(
                self.damping_factor, self.decay_factor, self.ema_expansion_matrix, self.kernel_projection_matrix
            )


def _real(x: torch.Tensor, layout: AttentionLayout | None) -> torch.Tensor:
    """x (B, L, d) with zeros at padding."""
    return x if layout is None or layout.tokens is None else x * layout.tokens.unsqueeze(-1).to(x.dtype)


def _packed(layout: AttentionLayout, reset: torch.Tensor, size: int | None) -> PackedBlocks | None:
    """Where packed tokens go, worked out by the first layer; nowhere if there are no blocks."""
    if size is None:
        return None
    if "packed" not in layout.plans:
        layout.plans["packed"] = packed_blocks(reset, size, layout.documents)
    return layout.plans["packed"]
