"""Kernels for tests of tuning microcontrollers: one is right, each other one wrong in one way; and small models."""

from models import tflite_quantized as q
from tvm.script import tirx as T

from deploy import model


@T.prim_func(s_tir=True)
def twice(a: T.Buffer((8,), "int8"), b: T.Buffer((8,), "int32")):
    for i in range(8):
        with T.sblock("twice"):
            j = T.axis.spatial(8, i)
            b[j] = T.cast(a[j], "int32") * 2


@T.prim_func(s_tir=True)
def wrong(a: T.Buffer((8,), "int8"), b: T.Buffer((8,), "int32")):
    for i in range(8):
        b[i] = T.cast(a[i], "int32") * 3


@T.prim_func(s_tir=True)
def endless(a: T.Buffer((8,), "int8"), b: T.Buffer((8,), "int32")):
    b[0] = 1
    while b[0] == 1:
        b[1] = T.call_extern("int32", "stopwatch_known")


@T.prim_func(s_tir=True)
def crashing(a: T.Buffer((8,), "int8"), b: T.Buffer((8,), "int32")):
    b[0] = T.call_extern("int32", "memset", T.uint32(0xFFFFFF00), 0, 16)


@T.prim_func(s_tir=True)
def ending(a: T.Buffer((8,), "int8"), b: T.Buffer((8,), "int32")):
    b[0] = T.call_extern("int32", "host_exit", 0)


@T.prim_func(s_tir=True)
def beyond(a: T.Buffer((8,), "int8"), b: T.Buffer((8,), "int32")):
    for i in range(9):
        b[i] = T.cast(a[i % 8], "int32") * 2


@T.prim_func(s_tir=True)
def undefined(a: T.Buffer((8,), "int8"), b: T.Buffer((8,), "int32")):
    b[0] = T.call_extern("int32", "no_such_function")


@T.prim_func(s_tir=True)
def greedy(a: T.Buffer((8,), "int8"), b: T.Buffer((8,), "int32")):
    w = T.sblock_alloc_buffer((2000,), "int32")
    for i in range(2000):
        w[i] = T.cast(a[i % 8], "int32")
    for i in range(8):
        b[i] = w[i] * 2


@T.prim_func(s_tir=True)
def resetting(a: T.Buffer((8,), "int8"), b: T.Buffer((8,), "int32")):
    b[0] = T.call_extern("int32", "board_reset")


def small(folder, convolution=False):
    """Every kind of micro-kernel, or one convolution, in a size where several schedules differ."""
    net = q.Net(3)
    x = net.input(1, 8, 8, 4)
    first = net.conv(x, 8, 3, padding=0)
    net.outputs = [first if convolution else net.conv(net.depthwise(first, 1, 3, padding=0), 12, 1)]
    (folder / "net.tflite").write_bytes(net.pack())
    return model.load(folder / "net.tflite")
