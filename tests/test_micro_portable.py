"""The micro-kernels in C99, compiled for this machine: what each computes, for any size."""

import ctypes
import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy import shell
from deploy.kernels.micro import portable
from deploy.kernels.micro.c_source import c_source
from deploy.kernels.micro.dsp_in_c import in_c
from deploy.kernels.micro.legalize_scaling import channel_sums
from deploy.kernels.micro.smlad import FILL, WIDEN, MicroKernel, two_digits
from deploy.kernels.micro.smlad_depthwise import DepthwiseKernel, Plane

pytestmark = pytest.mark.tvm
FEW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TRAPS = ["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
STRICT = ["-std=c99", "-O1", "-Wall", "-Wextra", "-Werror", "-pedantic", *TRAPS]
_files = itertools.count()


def called(folder, symbol, *arguments):
    """Compile the function of a symbol strictly, and call it."""
    source = folder / f"{next(_files)}.c"
    hidden = 'visibility("hidden")'
    source.write_text(c_source([symbol]).replace(hidden, 'visibility("default")'))
    library = source.with_suffix(".so")
    shell.run(["cc", *STRICT, "-shared", "-fPIC", source, "-o", library], timeout_s=60)
    values = [a.ctypes.data_as(ctypes.c_void_p) if isinstance(a, np.ndarray) else ctypes.c_int32(a) for a in arguments]
    getattr(ctypes.CDLL(str(library)), symbol)(*values)


def int8s(random, *shape):
    return random.integers(-128, 128, shape).astype(np.int8)


@FEW
@given(
    block=st.tuples(st.integers(1, 4), st.integers(1, 5)),
    total=st.integers(1, 9),
    rows=st.integers(1, 4),
    taps=st.integers(1, 31),
    step=st.integers(0, 12),
    seed=st.integers(0, 99),
)
def test_sums_of_rows(tmp_path, block, total, rows, taps, step, seed):
    random, (pixels, channels) = np.random.default_rng(seed), (block[0], min(block[1], total))
    pitch = taps + int(random.integers(0, 5))
    kernel = portable.PortableKernel(pixels, channels, total, rows, taps, step, pitch)
    image = int8s(random, (rows - 1) * pitch + (pixels - 1) * step + taps)
    weights, sums = int8s(random, rows, taps, total), np.full((pixels, total), 7, np.int32)
    packed = portable.in_blocks(weights, channels)
    called(tmp_path, kernel.symbol, image, packed, sums)
    windows = [[image[r * pitch + p * step :][:taps] for r in range(rows)] for p in range(pixels)]
    expected = np.einsum("prk,rkc->pc", np.array(windows, np.int32), weights.astype(np.int32))
    np.testing.assert_array_equal(sums, expected)
    np.testing.assert_array_equal(channel_sums(packed)[:total], np.abs(weights.astype(int)).sum(axis=(0, 1)))


def windows_of(plane, kernel):
    size = (kernel.rows, kernel.columns, kernel.kernel_h, kernel.kernel_w)
    grid = np.indices(size)
    return plane[grid[0] * kernel.stride_h + grid[2], grid[1] * kernel.stride_w + grid[3]].astype(np.int32)


@FEW
@given(
    size=st.tuples(st.integers(1, 4), st.integers(1, 11)),
    window=st.tuples(st.integers(1, 4), st.integers(1, 6)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    registers=st.sampled_from([8, 13, 26]),
    seed=st.integers(0, 99),
)
def test_sums_of_one_channel(tmp_path, size, window, stride, registers, seed):
    random = np.random.default_rng(seed)
    block = portable.sums_in_registers(size[1], window[1], registers)
    pitch = (size[1] - 1) * stride[1] + window[1] + int(random.integers(0, 3))
    kernel = portable.PortableDepthwise(*size, *window, *stride, block, pitch)
    plane, taps = int8s(random, (size[0] - 1) * stride[0] + window[0], pitch), int8s(random, *window)
    sums = np.zeros(size, np.int32)
    called(tmp_path, kernel.symbol, plane, taps, sums)
    np.testing.assert_array_equal(sums, np.einsum("hwrk,rk->hw", windows_of(plane, kernel), taps.astype(np.int32)))


@FEW
@given(
    image=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 3)),
    border=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    size=st.tuples(st.integers(1, 8), st.integers(1, 12)),
    kind=st.sampled_from([portable.PortablePlane, Plane]),
    seed=st.integers(0, 99),
)
def test_a_channel_s_image_within_its_border(tmp_path, image, border, size, kind, seed):
    """A plane may be smaller than the image: what no window reaches is left out, and nothing beside it is written."""
    random, (top, left) = np.random.default_rng(seed), border
    rows, pitch = max(size[0], top + 1), max(size[1], left + 1)
    copy, source = kind(*image, top, left, rows, pitch, -5), int8s(random, *image)
    plane = np.full(rows * pitch + 4, 99, np.int8 if kind is portable.PortablePlane else np.int16)
    called(tmp_path, copy.symbol, source, plane)
    expected = np.full((rows, pitch), -5)
    inside = source[: rows - top, : pitch - left, 0]
    expected[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    np.testing.assert_array_equal(plane[:-4].reshape(rows, pitch), expected)
    assert (plane[-4:] == 99).all()


@pytest.mark.parametrize(("pixels", "channels", "rows", "pairs"), [(2, 4, 3, 5), (1, 8, 1, 7), (1, 4, 2, 2)])
def test_sums_of_pairs_in_c(tmp_path, pixels, channels, rows, pairs):
    random, step, pitch = np.random.default_rng(pairs), 6, 2 * pairs + 3
    kernel = MicroKernel(pixels, channels, rows, pairs, step)
    weights = random.integers(-127, 128, (rows, 2 * pairs, channels)).astype(np.int8)
    image = int8s(random, (rows - 1) * pitch + (pixels - 1) * step + 2 * pairs + 1).astype(np.int16)
    sums = np.zeros((pixels, channels), np.int32)
    called(tmp_path, kernel.symbol, image, two_digits(weights, channels, 128), sums, 2 * (pitch - 2 * pairs))
    windows = [[image[r * pitch + p * step :][: 2 * pairs] for r in range(rows)] for p in range(pixels)]
    expected = np.einsum("prk,rkc->pc", np.array(windows, np.int32), weights.astype(np.int32))
    np.testing.assert_array_equal(sums[:, 0::2], expected[:, 0::2])
    np.testing.assert_array_equal((sums[:, 1::2] - sums[:, 0::2]) >> 8, expected[:, 1::2])


@pytest.mark.parametrize(("width", "stride"), [(2, 1), (3, 1), (4, 1), (5, 1), (3, 2), (4, 2)])
def test_sums_of_pairs_of_one_channel_in_c(tmp_path, width, stride):
    random, columns = np.random.default_rng(width), 6
    kernel = DepthwiseKernel(3, columns, 2, width, 1, stride, (columns - 1) * stride + width + 1)
    plane, taps = int8s(random, 4, kernel.pitch).astype(np.int16), int8s(random, 2, width)
    sums = np.zeros((3, columns), np.int32)
    called(tmp_path, kernel.symbol, np.append(plane, [[0] * kernel.pitch], 0).astype(np.int16),
           kernel.taps.stored(taps), sums)  # fmt: skip
    np.testing.assert_array_equal(sums, np.einsum("hwrk,rk->hw", windows_of(plane, kernel), taps.astype(np.int32)))


def test_what_is_the_same_for_every_model(tmp_path):
    wide = np.zeros(5, np.int16)
    called(tmp_path, WIDEN, np.array([-128, 0, 127], np.int8), wide, 3)
    called(tmp_path, FILL, wide[3:], 1, -9)
    assert wide.tolist() == [-128, 0, 127, -9, 0]
    assert in_c("memcpy") is None
    assert c_source(["memcpy"]) == ""


def test_symbols_say_everything():
    kernels = [
        portable.PortableKernel(2, 4, 64, 3, 48, 16, 544),
        portable.PortableDepthwise(25, 5, 3, 3, 1, 2, 5, 7),
        portable.PortablePlane(25, 5, 64, 1, 1, 27, 7, -128),
    ]
    for kernel in kernels:
        assert type(kernel).of(kernel.symbol) == kernel
        assert f"{kernel.symbol}(" in c_source([kernel.symbol, "memcpy"])
        assert all(type(kernel).of(other.symbol) is None for other in kernels if other is not kernel)


def test_a_block_fits_the_registers():
    for registers in (8, 13, 26):
        kernel = portable.blocking(25, 64, 1, 64, 64, registers)
        assert kernel.pixels * kernel.channels + kernel.pixels + 3 <= registers
        assert portable.blocking(1, 64, 1, 64, 64, registers).pixels == 1
    usual = portable.blocking(24, 64, 1, 64, 64, 13)
    assert (usual.pixels, usual.channels) == (2, 4)
    assert portable.blocking(5, 1, 1, 9, 9, 4).channels == 1
    assert portable.sums_in_registers(25, 3, 13) == 7
    assert portable.sums_in_registers(1, 9, 8) == 1
