"""A target's memories: flash and RAM, faster RAMs beside it (`pools`), and flash outside of the chip.

```yaml
memory:
  flash: 2 MiB
  flash_at: 0x08000000
  ram: 512 KiB
  ram_at: 0x24000000
  pools: [{name: dtcm, size: 128 KiB, at: 0x20000000}]   # the fastest first; what finds no room there is in ram
  external_flash: 8 MiB                                  # weights go there that do not fit into flash ...
  external_flash_at: 0x90000000
  weights: external                                      # ... or always; `internal`: never
```
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

from deploy import fields
from deploy.errors import InputError
from deploy.fields import Option, Table
from deploy.yaml_source import Node, Plain

_STEP = 16  # of the addresses of what tensors and weights begin at: a vector
WEIGHTS = ("internal", "external")
_TABLE: Table = {
    "flash": "bytes",
    "flash_at": "address",
    "ram": "bytes",
    "ram_at": "address",
    "external_flash": "bytes",
    "external_flash_at": "address",
    "weights": "text",
}
_POOL: Table = {"name": "text", "size": "bytes", "at": "address"}
_KEYS = (*_TABLE, "pools")
_BASIC = ("flash", "ram", "flash_at", "ram_at")
# A pool's name becomes a part of C names: arena_<name>, arena_<name>_bytes, <MODEL>_ARENA_<NAME>_BYTES.
_NAME = re.compile(r"[a-z][a-z0-9]{0,15}")
_TAKEN = ("alignment", "bytes", "external", "flash", "ram")


@dataclass(frozen=True)
class Pool:
    """A RAM for activations beside the main one: its bytes, and its first address where that is known."""

    name: str
    size: int
    at: int | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name in _TAKEN:
            raise InputError(
                f'memory: the pool\'s name "{self.name[:80]}" must be lower-case letters and digits, the first of them '
                f"a letter, at most 16 of them, and none of {', '.join(_TAKEN)}; for example dtcm"
            )
        if self.size <= 0:
            raise InputError(f"memory: the pool {self.name} must have more than zero bytes")
        _check_address(f"at of the pool {self.name}", self.at)
        _check_step(f"at of the pool {self.name}", self.at)


@dataclass(frozen=True)
class Memory:
    """Bytes of flash and RAM a device has, None where there is no fixed limit; the addresses at which they begin.

    pools: the fastest first. weights: internal, external, or None for external where they do not fit otherwise.
    """

    flash: int | None = None
    ram: int | None = None
    flash_at: int | None = None
    ram_at: int | None = None
    pools: tuple[Pool, ...] = ()
    external_flash: int | None = None
    external_flash_at: int | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        for name in ("flash", "ram", "external_flash"):
            size = getattr(self, name)
            if size is not None and size <= 0:
                raise InputError(f"memory: {name} must be more than zero bytes")
            _check_address(f"{name}_at", getattr(self, f"{name}_at"))
        names = [pool.name for pool in self.pools]
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(f"memory: two pools are called {twice[0]}; give each a name of its own")
        if self.weights not in (None, *WEIGHTS):
            raise InputError(f'memory: weights "{self.weights}" is not one of {", ".join(WEIGHTS)}')
        if self.external_flash is None and (self.external_flash_at is not None or self.weights == "external"):
            key = "external_flash_at" if self.external_flash_at is not None else "weights: external"
            raise InputError(f'memory: {key} needs "external_flash", the size of that memory, such as 8 MiB')
        _check_step("external_flash_at", self.external_flash_at)
        if self.is_extended:
            _check_apart(sorted(self._ranges()))

    @property
    def is_extended(self) -> bool:
        """Whether there is more than one flash and one RAM."""
        return bool(self.pools) or self.external_flash is not None

    @property
    def places(self) -> dict[str, int | None]:
        """All that an image must know of its memories, by name; None where it is not given."""
        needed: dict[str, int | None] = {name: getattr(self, name) for name in ("flash", "flash_at", "ram", "ram_at")}
        needed |= {f"at of the pool {pool.name}": pool.at for pool in self.pools}
        return needed if self.external_flash is None else {**needed, "external_flash_at": self.external_flash_at}

    def _ranges(self) -> Iterator[tuple[int, int, str]]:
        """First address, the one behind the last, and name of each memory of which both are known."""
        for name in ("flash", "ram", "external_flash"):
            at, size = getattr(self, f"{name}_at"), getattr(self, name)
            if at is not None and size is not None:
                yield at, at + size, name
        yield from ((pool.at, pool.at + pool.size, f"pool {pool.name}") for pool in self.pools if pool.at is not None)


def _check_address(what: str, address: int | None) -> None:
    if address is not None and not 0 <= address < 2**32:
        raise InputError(f"memory: {what} must be an address of 32 bits, such as 0x20000000")


def _check_step(what: str, address: int | None) -> None:
    if address is not None and address % _STEP:
        raise InputError(f"memory: {what} must be a multiple of {_STEP}, not 0x{address:08x}")


def _check_apart(ranges: list[tuple[int, int, str]]) -> None:
    for _, stop, name in ranges:
        if stop > 2**32:
            raise InputError(f"memory: {name} ends beyond the addresses of 32 bits; correct its address or its size")
    for (start, stop, name), (other_start, other_stop, other) in pairwise(ranges):
        if other_start < stop:
            raise InputError(
                f"memory: {name} (0x{start:08x} to 0x{stop - 1:08x}) and {other} (0x{other_start:08x} to "
                f"0x{other_stop - 1:08x}) overlap; correct the address or the size of one of them"
            )


def section_of(pool: str) -> str:
    """The section for buffers in a pool: RAM that start-up code clears, for linker scripts that do not know it."""
    return f".bss.tvm_deploy_{pool}"


def section_macro(pool: str) -> str:
    """The C macro that says which section that is."""
    return f"TVM_DEPLOY_{pool.upper()}_SECTION"


def check_artifact(artifact: str, memory: Memory) -> None:
    """Raise InputError where an artifact of this kind cannot use the memories."""
    if artifact != "firmware" and memory.is_extended:
        raise InputError(f'memory: pools and external_flash are for the artifact "firmware", not for "{artifact}"')


def parse_memory(node: Node) -> Memory:
    """Return `{flash: 4 MiB, ram: 512 KiB, pools: [...]}` as Memory."""
    entries = node.mapping("memory", _KEYS)
    plain = replace(node, value={key: entry for key, entry in entries.items() if key != "pools"})
    values: dict[str, Any] = dict(fields.read(plain, "memory", _TABLE))
    if "weights" in entries:
        entries["weights"].choice("weights of memory", WEIGHTS)
    if "pools" in entries:
        values["pools"] = tuple(_pool(one) for one in entries["pools"].items("pools of memory"))
    return node.placing(lambda: Memory(**values))


def _pool(node: Node) -> Pool:
    values = cast("dict[str, Any]", dict(fields.read(node, "a pool of memory", _POOL, ("name", "size"))))
    return node.placing(lambda: Pool(**values))


def plain_memory(memory: Memory) -> dict[str, Plain]:
    """Return the plain data that `parse_memory` reads."""
    every = {name: getattr(memory, name) for name in _TABLE}
    entries = fields.write(tuple((name, value) for name, value in every.items() if value is not None), _TABLE)
    pools: list[Plain] = [dict(_plain_pool(pool)) for pool in memory.pools]
    return {**entries, "pools": pools} if pools else entries


def _plain_pool(pool: Pool) -> dict[str, Plain]:
    every: dict[str, Option | None] = {"name": pool.name, "size": pool.size, "at": pool.at}
    return fields.write(tuple((name, value) for name, value in every.items() if value is not None), _POOL)


def memory_facts(memory: Memory) -> dict[str, Any]:
    """Return the memories as a manifest has them: numbers, and what is special only where it is there."""
    more = {
        "pools": [{"name": pool.name, "size": pool.size, "at": pool.at} for pool in memory.pools],
        "external_flash": memory.external_flash,
        "external_flash_at": memory.external_flash_at,
    }
    basic = {name: getattr(memory, name) for name in _BASIC}
    return {**basic, **{key: value for key, value in more.items() if value not in (None, [])}}


def memory_of(facts: Mapping[str, Any]) -> Memory:
    """Return the memories of which a manifest has `facts`."""
    return Memory(**{**facts, "pools": tuple(Pool(**pool) for pool in facts.get("pools", ()))})
