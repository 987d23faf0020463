"""Dividing candidates into images."""

from hypothesis import given
from hypothesis import strategies as st

from deploy.tuning.firmware_image import code_sizes, packed

KERNELS = st.lists(st.integers(0, 50), min_size=1, max_size=4)  # bytes of the constants of each
CANDIDATES = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 3)), max_size=20)  # bytes of code, which kernel


def test_sizes_of_code_are_those_that_images_have():
    listed = """\
a.o  :
section                         size   addr
.text                            802      0
.ARM.exidx                         8      0
.text.tvm.fp16.conv              322      0
.debug_loc                       903      0
Total                           2035


b.o  :
section              size   addr
.text.k              1000      0
.rodata.cst16          16      0
Total                1016
"""
    assert code_sizes(listed) == [802, 1016]


def taken(group, code, kernels):
    """Bytes of a group."""
    return sum(code[at] for at in group) + sum(dict(kernels[at] for at in group).values())


@given(CANDIDATES, KERNELS, st.integers(0, 200))
def test_groups_hold_all_in_order_and_as_much_as_there_is_room_for(candidates, constants, room):
    code = [nbytes for nbytes, _ in candidates]
    kernels = [(kernel % len(constants), constants[kernel % len(constants)]) for _, kernel in candidates]
    groups = packed(code, kernels, room)
    assert [at for group in groups for at in group] == list(range(len(code)))
    for number, group in enumerate(groups):
        assert group
        assert len(group) == 1 or taken(group, code, kernels) <= room
        if number:
            assert taken([*groups[number - 1], group[0]], code, kernels) > room, "the next begins where one is full"
