"""Small random torch networks quantized as torch's own quantizers write them, an operator at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers the operators
from torch import nn

RANGES = {torch.int8: (-128, 127), torch.uint8: (0, 255), torch.int16: (-32768, 32767)}
ops = torch.ops.quantized_decomposed


class Point(nn.Module):
    """An activation quantized and dequantized: the first tensor that passes sets the scale, like an observer."""

    def __init__(self, dtype: torch.dtype = torch.int8, limits: tuple[int, int] | None = None, tensors: bool = False):
        super().__init__()
        self.dtype, self.limits, self.tensors = dtype, limits or RANGES[dtype], tensors
        self.scale: float | None = None
        self.zero_point = 0

    def observe(self, x: torch.Tensor) -> None:
        low, high = self.limits
        smallest, largest = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
        self.scale = float(torch.tensor(max(largest - smallest, 1e-3) / (high - low), dtype=torch.float32))
        self.zero_point = min(max(low - round(smallest / self.scale), low), high)
        if self.tensors:
            self.register_buffer("scales", torch.tensor([self.scale]))
            self.register_buffer("zeros", torch.tensor([self.zero_point]))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.scale is None:
            self.observe(x)
        if self.tensors:
            parameters = (self.scales, self.zeros, *self.limits, self.dtype)
            q = ops.quantize_per_tensor.tensor(x, *parameters)
            return q, ops.dequantize_per_tensor.tensor(q, *parameters)
        q = ops.quantize_per_tensor.default(x, self.scale, self.zero_point, *self.limits, self.dtype)
        return q, ops.dequantize_per_tensor.default(q, self.scale, self.zero_point, *self.limits, self.dtype)


class Weighted(nn.Module):
    """A linear operator on int8 weights, one scale for each output channel or one for all; the bias stays float."""

    def __init__(self, operator: Callable[..., Any], shape: tuple[int, ...], per_channel: bool = True, **options: Any):
        super().__init__()
        self.operator, self.options, self.per_channel = operator, options, per_channel
        self.register_buffer("weight", torch.randint(-127, 128, shape, dtype=torch.int8))
        self.register_buffer("scales", torch.rand(shape[0]) * 0.01 + 0.001)
        self.register_buffer("zeros", torch.zeros(shape[0], dtype=torch.int64))
        self.bias = nn.Parameter(torch.randn(shape[0]) * 0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.per_channel:
            w = ops.dequantize_per_channel.default(self.weight, self.scales, self.zeros, 0, -127, 127, torch.int8)
        else:
            w = ops.dequantize_per_tensor.default(self.weight, 0.005, 3, -127, 127, torch.int8)
        return self.operator(x, w, self.bias, **self.options)


def conv(
    inputs: int, outputs: int, size: int = 3, groups: int = 1, per_channel: bool = True, **options: Any
) -> Weighted:
    """A convolution that keeps height and width, unless `options` say otherwise."""
    operator = nn.functional.conv1d if options.pop("rank", 2) == 1 else nn.functional.conv2d
    shape = (
        (outputs, inputs // groups, size)
        if operator is nn.functional.conv1d
        else (outputs, inputs // groups, size, size)
    )
    options = {"padding": size // 2, "groups": groups, **options}
    return Weighted(operator, shape, per_channel, **options)


def linear(inputs: int, outputs: int, per_channel: bool = True) -> Weighted:
    """A fully connected layer."""
    return Weighted(nn.functional.linear, (outputs, inputs), per_channel)


class Net(nn.Module):
    """A function of (net, x, point) over named parts. `point(x)` quantizes; what it gives as integers is an output."""

    def __init__(
        self, function: Callable[..., Any], *example: torch.Tensor, dtype: torch.dtype = torch.int8, **parts: Any
    ):
        super().__init__()
        self.function, self.options = function, {"dtype": dtype}
        self.options |= {name: parts.pop(name) for name in ("limits", "tensors") if name in parts}
        self.points = nn.ModuleList()
        for name, part in parts.items():
            setattr(self, name, part)
        self.eval()
        with torch.no_grad():
            self(*example)  # observes

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs: list[torch.Tensor] = []

        def point(x: torch.Tensor) -> torch.Tensor:
            if len(self.points) == len(outputs):
                self.points.append(Point(**self.options))
            q, real = self.points[len(outputs)](x)
            outputs.append(q)
            return real

        last = self.function(self, *inputs, point)
        return tuple(outputs) if last is None else (*outputs, last)
