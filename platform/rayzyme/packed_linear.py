"""Products with a matrix that never changes, laid out once for the machine.

On a CPU the matrix is brought into oneDNN's blocked layout when it is given; torch's own `linear` would rearrange it in every
call, which takes a fifth of the time at CLIPZyme's sizes and half of it for a few queries against a screening set. Where
that layout is not to be had (another device, a build without oneDNN, a torch that names it differently) the plain product is
used; the numbers agree to the rounding of the type.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

# Rows of input that the layout is tuned for; any number can be given.
_TYPICAL_ROWS = 512


class PackedLinear:
    """`x @ weight.T + bias` for fixed weights.

    Args:
        weight: float32 or bfloat16 (outputs, inputs) on the CPU.
        bias: As `weight`, (outputs,), or None.
        device: Where the inputs will be.
        typical_rows: Rows of input that the layout is tuned for.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        device: torch.device,
        typical_rows: int = _TYPICAL_ROWS,
    ) -> None:
        self._bias = None if bias is None else bias.to(device)
        self._packed = _pack(weight, typical_rows) if device.type == "cpu" else None
        self._outputs = len(weight)
        if self._packed is None:
            self._weight = weight.to(device)

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """(n, inputs) of the weight's type to (n, outputs)."""
        if self._packed is None:
            return F.linear(inputs, self._weight, self._bias)
        if len(inputs) == 0:
            return inputs.new_empty(0, self._outputs)
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self._packed, self._bias, "none", [], "")
        return product


def _pack(weight: torch.Tensor, typical_rows: int) -> torch.Tensor | None:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    try:
        packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), typical_rows)
    except (AttributeError, RuntimeError):
        return None
    return packed
