"""Linear layers whose weights are laid out once for the machine's matrix product.

The weights never change, so on a CPU they are brought into oneDNN's blocked layout when the checkpoint is loaded; torch's
own `linear` would rearrange them in every call, a fifth of the time at CLIPZyme's sizes. Where that layout is not to be
had (another device, a build without oneDNN, a torch that names it differently) the plain product is used; the numbers
agree to float32 rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

# Rows the layout is tuned for; any number can be given.
_TYPICAL_ROWS = 512


class PackedLinear:
    """`x @ weight.T + bias` for fixed weights.

    Args:
        weight: float32 (outputs, inputs) on the CPU.
        bias: float32 (outputs,) on the CPU, or None.
        device: Where the inputs will be.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, device: torch.device) -> None:
        self._bias = None if bias is None else bias.to(device)
        self._packed = _pack(weight) if device.type == "cpu" else None
        self._outputs = len(weight)
        if self._packed is None:
            self._weight = weight.to(device)

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """float32 (n, inputs) to (n, outputs)."""
        if self._packed is None:
            return F.linear(inputs, self._weight, self._bias)
        if len(inputs) == 0:
            return inputs.new_empty(0, self._outputs)
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self._packed, self._bias, "none", [], "")
        return product


def _pack(weight: torch.Tensor) -> torch.Tensor | None:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    try:
        packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _TYPICAL_ROWS)
    except (AttributeError, RuntimeError):
        return None
    return packed
