"""Weights in the order in which a kernel reads them: blocks of `lanes` output channels, innermost."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def lanes_for(channels: int, vector_lanes: int) -> int:
    """Channels in one packed block: a full vector, or the next power of two for a narrower layer."""
    lanes = 1
    while lanes < min(channels, vector_lanes):
        lanes *= 2
    return lanes


def dividing_lanes(channels: int, vector_lanes: int) -> int:
    """Channels in one block where none may be missing: the largest power of two that divides the layer."""
    return min(channels & -channels, vector_lanes)


def _pad_channels(weight: npt.NDArray[np.generic], lanes: int) -> npt.NDArray[np.generic]:
    """Fill the last axis with zeros up to a multiple of `lanes`."""
    missing = -weight.shape[-1] % lanes
    return np.pad(weight, [(0, 0)] * (weight.ndim - 1) + [(0, missing)])


def pack_channels(weight: npt.NDArray[np.generic], lanes: int) -> npt.NDArray[np.generic]:
    """[..., channels] → [ceil(channels / lanes), ..., lanes], the missing channels zero.

    A convolution's [KH, KW, CI, CO] becomes [CO/lanes, KH, KW, CI, lanes]; a matrix [K, N] becomes
    [N/lanes, K, lanes]; depthwise [KH, KW, C] becomes [C/lanes, KH, KW, lanes].
    """
    padded = _pad_channels(weight, lanes)
    blocks = padded.reshape(*padded.shape[:-1], padded.shape[-1] // lanes, lanes)
    return np.ascontiguousarray(np.moveaxis(blocks, -2, 0))
