"""Memories of a target: pools and external flash in YAML, what is refused and how, and that it is read back."""

import dataclasses

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from deploy.errors import InputError
from deploy.target import from_text, render
from deploy.target_memory import Memory, Pool, memory_facts, memory_of

HEAD = "name: a\ndescription: b\nartifact: firmware\ndevice: {kind: serial}\ntvm: {kind: llvm, mtriple: thumbv7em}\n"
FULL = """\
memory:
  flash: 2 MiB
  flash_at: 0x08000000
  ram: 512 KiB
  ram_at: 0x24000000
  pools:
    - {name: dtcm, size: 128 KiB, at: 0x20000000}
    - {name: sram1, size: 1 KiB}
  external_flash: 8 MiB
  external_flash_at: 0x90000000
  weights: external
"""
MEMORY = Memory(
    flash=2 << 20,
    ram=512 << 10,
    flash_at=0x08000000,
    ram_at=0x24000000,
    pools=(Pool("dtcm", 128 << 10, 0x20000000), Pool("sram1", 1024)),
    external_flash=8 << 20,
    external_flash_at=0x90000000,
    weights="external",
)


def test_everything_is_read():
    read = from_text(HEAD + FULL, "f.yaml")
    assert read.memory == MEMORY
    assert from_text(render(read), "rendered") == read
    assert [name for name, value in MEMORY.places.items() if value is None] == ["at of the pool sram1"]


KEYS = "external_flash, external_flash_at, flash, flash_at, pools, ram, ram_at, weights"
RESERVED = (
    "must be lower-case letters and digits, the first of them a letter, at most 16 of them, and none of alignment, "
    "bytes, external, flash, ram; for example dtcm"
)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("memory: {pool: []}", f'6: unknown key "pool" in memory; allowed: {KEYS}; did you mean "pools"?'),
        ("memory: {pools: 4}", "6: pools of memory must be a list such as [a, b], not 4"),
        ("memory: {pools: [4]}", "6: a pool of memory must be a mapping (key: value), not 4"),
        ("memory: {pools: [{size: 1 KiB}]}", '6: a pool of memory has no "name", which it needs'),
        ("memory: {pools: [{name: a}]}", '6: a pool of memory has no "size", which it needs'),
        (
            "memory:\n  pools:\n    - {name: a, szie: 1 KiB}",
            '8: unknown key "szie" in a pool of memory; allowed: at, name, size; did you mean "size"?',
        ),
        (
            "memory: {pools: [{name: a, size: 1 KiB, at: 5}]}",
            "6: at of a pool of memory must be an address of 32 bits, such as 0x20000000, not 5",
        ),
        ("memory: {pools: [{name: a, size: 0 B}]}", "6: memory: the pool a must have more than zero bytes"),
        ("memory: {pools: [{name: DTCM, size: 1 B}]}", f'6: memory: the pool\'s name "DTCM" {RESERVED}'),
        ("memory: {pools: [{name: d_1, size: 1 B}]}", f'6: memory: the pool\'s name "d_1" {RESERVED}'),
        ("memory: {pools: [{name: bytes, size: 1 B}]}", f'6: memory: the pool\'s name "bytes" {RESERVED}'),
        (
            "memory: {pools: [{name: a, size: 1 B}, {name: a, size: 2 B}]}",
            "6: memory: two pools are called a; give each a name of its own",
        ),
        (
            "memory: {ram: 64 KiB, ram_at: 0x20000000, pools: [{name: a, size: 1 KiB, at: 0x2000fff0}]}",
            "6: memory: ram (0x20000000 to 0x2000ffff) and pool a (0x2000fff0 to 0x200103ef) overlap; correct the "
            "address or the size of one of them",
        ),
        (
            "memory: {flash: 1 MiB, flash_at: 0x00000000, external_flash: 1 MiB, external_flash_at: 0x000ffff0}",
            "6: memory: flash (0x00000000 to 0x000fffff) and external_flash (0x000ffff0 to 0x001fffef) overlap; "
            "correct the address or the size of one of them",
        ),
        (
            "memory: {pools: [{name: a, size: 1 KiB, at: 0x20000008}]}",
            "6: memory: at of the pool a must be a multiple of 16, not 0x20000008",
        ),
        (
            "memory: {pools: [{name: a, size: 17 B, at: 0xfffffff0}]}",
            "6: memory: pool a ends beyond the addresses of 32 bits; correct its address or its size",
        ),
        ("memory: {external_flash: 0 B}", "6: memory: external_flash must be more than zero bytes"),
        (
            "memory: {external_flash_at: 0x90000000}",
            '6: memory: external_flash_at needs "external_flash", the size of that memory, such as 8 MiB',
        ),
        (
            "memory: {weights: external}",
            '6: memory: weights: external needs "external_flash", the size of that memory, such as 8 MiB',
        ),
        (
            "memory: {weights: extrenal}",
            '6: weights of memory must be one of internal, external, not "extrenal"; did you mean "external"?',
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_place(lines, message):
    with pytest.raises(InputError) as caught:
        from_text(f"{HEAD}{lines}\n", "f.yaml")
    assert str(caught.value) == f"f.yaml:{message}"


def test_neighbours_do_not_overlap():
    Memory(ram=1024, ram_at=0x20000400, pools=(Pool("a", 1024, 0x20000000), Pool("b", 1024, 0x20000800)))
    with pytest.raises(InputError, match=r"pool a \(.*\) and pool b \(.*\) overlap"):
        Memory(pools=(Pool("b", 1024, 0x20000400), Pool("a", 1025, 0x20000000)))
    with pytest.raises(InputError, match='weights "up" is not one of internal, external'):
        Memory(weights="up")


def test_only_firmware_has_more_than_one_ram():
    target = from_text(HEAD + FULL, "f.yaml")
    with pytest.raises(
        InputError, match='pools and external_flash are for the artifact "firmware", not for "shared-lib'
    ):
        dataclasses.replace(target, artifact="shared-library", device=dataclasses.replace(target.device, kind="local"))


sizes, addresses = st.integers(1, 1 << 24), st.none() | st.integers(0, 2**28 - 1).map(lambda step: 16 * step)
pools = st.lists(
    st.builds(Pool, st.from_regex(r"[a-d][0-9]{0,3}", fullmatch=True), sizes, addresses),
    max_size=4,
    unique_by=lambda pool: pool.name,
).map(tuple)


@given(
    pools, st.lists(st.none() | sizes, min_size=3, max_size=3), st.lists(addresses, min_size=3, max_size=3), st.data()
)
def test_any_memory_is_read_back_or_refused(some, numbers, places, data):
    flash, ram, outside = numbers
    weights = data.draw(st.sampled_from([None, "internal", *(["external"] if outside else [])]))
    outside_at = places[2] if outside else None
    try:
        memory = Memory(flash, ram, places[0], places[1], some, outside, outside_at, weights)
    except InputError:
        assume(False)
    target = dataclasses.replace(from_text(HEAD, "f.yaml"), memory=memory)
    assert from_text(render(target), "rendered").memory == memory
    assert memory_of(memory_facts(memory)) == dataclasses.replace(memory, weights=None)


def test_a_manifest_shows_only_what_is_there():
    assert memory_facts(Memory(flash=4)) == {"flash": 4, "ram": None, "flash_at": None, "ram_at": None}
    assert memory_facts(MEMORY)["pools"][1] == {"name": "sram1", "size": 1024, "at": None}
