"""The operators that channels are followed through; all others keep the channels of their operands as they are."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from deploy.channels import moves, products
from deploy.channels.flow import Flow, Handler
from deploy.relax_rewrite import RESHAPES

HANDLERS: Mapping[str, Handler] = MappingProxyType(
    {
        **dict.fromkeys(products.PRODUCTS, products.product),
        **dict.fromkeys(products.ELEMENTWISE, products.elementwise),
        **dict.fromkeys(RESHAPES, moves.reshape),
        **dict.fromkeys(("relax.sum", "relax.mean", "relax.max", "relax.min"), moves.reduction),
        **{f"relax.nn.{kind}_pool{rank}d": moves.pool for kind in ("max", "avg") for rank in (1, 2, 3)},
        **{f"relax.nn.adaptive_avg_pool{rank}d": moves.pool for rank in (1, 2, 3)},
        "relax.take": moves.take,
        "relax.permute_dims": moves.permute,
        "relax.nn.pad": moves.pad,
        "relax.strided_slice": moves.strided_slice,
        "relax.image.resize2d": moves.resize,
        "relax.concat": moves.concat,
    }
)


def analysed(main: Any) -> Flow:
    """What is known of every tensor of a relax.Function."""
    return Flow(main, HANDLERS)
