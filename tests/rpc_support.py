"""What the tests of boards over RPC share, beside the boards themselves (benchmarks/rpc_farm.py)."""

from dataclasses import replace

from deploy.target import from_text
from deploy.target_parts import DeviceSpec

NATIVE = "name: board\ndescription: d\ntvm: {kind: llvm, mcpu: detect}\n"


def board(**options):
    """This machine as a target whose device is a board over RPC."""
    return replace(from_text(NATIVE, "board.yaml"), device=DeviceSpec("rpc", tuple(options.items())))


def at(place, **options):
    """This machine as a board at an address."""
    return board(host=place.host, port=place.port, **options)
