"""Whether two peers compute the same: outputs, loss, gradients, tokens with the same weights and inputs."""

from __future__ import annotations

from pathlib import Path

OUTPUT_TOLERANCE = 2e-5
# Float32 gradients are sums over thousands of tokens in an order of each implementation's own, and some (of a bias
# that softmax cancels) are rounding error only, which is compared with the whole gradient.
GRADIENT_TOLERANCE = 2e-4
GRADIENT_FLOOR = 2e-6


class DisagreementError(ValueError):
    """Two peers do not compute the same."""


def compare_files(ours: Path, theirs: Path) -> float:
    """Largest difference between two safetensors files, as a share of what is allowed.

    Outputs and loss may differ by 2e-5 * (1 + max |theirs|) at any element; the gradient of a parameter by 2e-4 of its
    norm plus 2e-6 of the norm of all gradients together. Integers, which are tokens, must be equal.

    Raises:
        DisagreementError: naming the tensor, if names or shapes differ, a value is not finite, or more is different.
    """
    from safetensors.torch import load_file

    a, b = load_file(ours), load_file(theirs)
    if alone := sorted(a.keys() ^ b.keys()):
        raise DisagreementError(f"{alone[0]} is there on one side only")
    total = sum(float(tensor.norm()) ** 2 for name, tensor in b.items() if name.startswith("gradient.")) ** 0.5
    worst = 0.0
    for name, y in b.items():
        x = a[name]
        if x.shape != y.shape:
            raise DisagreementError(f"{name} has shape {tuple(x.shape)} here and {tuple(y.shape)} there")
        if not y.is_floating_point():
            if different := int((x != y).sum()):
                raise DisagreementError(f"{name}: {different} of {y.numel()} are different")
            continue
        if name.startswith("gradient."):
            difference = float((x - y).norm())
            allowed = GRADIENT_TOLERANCE * float(y.norm()) + GRADIENT_FLOOR * total
        else:
            difference = float((x - y).abs().max())
            allowed = OUTPUT_TOLERANCE * (1 + float(y.abs().max()))
        # Written so that a NaN on either side disagrees.
        if not difference <= allowed:
            raise DisagreementError(f"{name} differs by {difference:.2g} where {allowed:.2g} is allowed")
        worst = max(worst, difference / allowed if allowed else 0.0)
    return worst
