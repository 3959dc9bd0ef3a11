"""The EMA sub-layer: parameters, residual and activation around `mega_transformers.ops.ema`."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import nn

from ..ops.autocast import no_autocast
from ..ops.ema import ema, ema_coefficients, ema_continued

if TYPE_CHECKING:
    from ..models.mega.cache_mega import MegaCacheLayer
    from ..models.mega.configuration_mega import MegaConfig


class MegaMultiDimensionDampedEma(nn.Module):
    """silu(EMA(x) + residual_weight * x) (paper section 3.1; authors' `MultiHeadEMA`).

    Parameters, with D' = 2d if bidirectional else d: `damping_factor`, `decay_factor`, `ema_expansion_matrix`
    (D', N, 1); `kernel_projection_matrix` (D', N); `residual_weight` (d,).
    """

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.bidirectional = config.bidirectional
        self.truncation = config.truncation
        channels = config.hidden_size * (2 if config.bidirectional else 1)
        states = config.ema_projection_size
        # the decays are too close to 1 for half precision, whatever dtype the rest is made in
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        self.damping_factor = nn.Parameter(torch.empty(channels, states, 1, dtype=dtype))
        self.decay_factor = nn.Parameter(torch.empty(channels, states, 1, dtype=dtype))
        self.ema_expansion_matrix = nn.Parameter(torch.empty(channels, states, 1, dtype=dtype))
        self.kernel_projection_matrix = nn.Parameter(torch.empty(channels, states, dtype=dtype))
        self.residual_weight = nn.Parameter(torch.empty(config.hidden_size, dtype=dtype))

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | None = None,
        document_starts: torch.Tensor | None = None,
        num_documents: int | None = None,
        cache_layer: MegaCacheLayer | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Convolves, and leaves the rest, which no other token has a part in, to `activate`.

        Args:
            x: (B, L, d).
            mask: (B, L), 1 or True at real tokens; padding contributes nothing.
            document_starts: (B, L) bool, True at the first token of every packed document.
            num_documents: An upper bound of the documents in a row, if known.
            cache_layer: What was remembered of the tokens before, brought up to date; not with documents, nor in two
                directions.

        Returns:
            The EMA alone, (B, L, d), and `residual_weight`: from a call, which hooks may have to bring weights for.
        """
        if mask is not None:
            x = x * mask.unsqueeze(-1).to(x.dtype)
        parameters = (
            self.damping_factor,
            self.decay_factor,
            self.ema_expansion_matrix,
            self.kernel_projection_matrix,
        )
        if cache_layer is None:
            averaged = ema(
                x,
                *parameters,
                bidirectional=self.bidirectional,
                truncation=self.truncation,
                document_starts=document_starts,
                num_documents=num_documents,
            )
            return cast(torch.Tensor, averaged), self.residual_weight
        with no_autocast(x.device.type):
            coefficients = cache_layer.coefficients(lambda: ema_coefficients(*parameters))
            averaged, state = ema_continued(
                x, coefficients, truncation=self.truncation, state=cache_layer.state, history=cache_layer.history
            )
        cache_layer.advance(x, state, coefficients, self.truncation)
        return averaged, self.residual_weight

    @staticmethod
    def activate(y: torch.Tensor, x: torch.Tensor, residual_weight: torch.Tensor) -> torch.Tensor:
        """silu(y + residual_weight * x) of the EMA y and its input x, (B, L, d) each."""
        return F.silu(torch.addcmul(y, residual_weight.to(x.dtype), x))
