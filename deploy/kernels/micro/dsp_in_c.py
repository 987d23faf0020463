"""The functions of `smlad` and `smlad_depthwise` as C99, for compilers that take no assembly of this kind.

Where the compiler says that the core has the DSP extension, its instructions are called by the names that Arm's C
language extensions give them; everywhere else the same numbers come out of plain C.
"""

from __future__ import annotations

from deploy.kernels.micro.portable import PortablePlane, advanced, function, repeated
from deploy.kernels.micro.smlad import FILL, WIDEN, MicroKernel
from deploy.kernels.micro.smlad_depthwise import DepthwiseKernel, Plane

# Words of two int16, the first one in the lower half. Sums may pass the ends of int32 on their way.
WORDS = """\
#if defined(__ARM_FEATURE_DSP) && __ARM_FEATURE_DSP
#include <arm_acle.h>
#define TVM_DEPLOY_SMLAD(a, b, sum) __smlad(a, b, sum)
#define TVM_DEPLOY_SMLABT(a, b, sum) __smlabt(a, b, sum)
#define TVM_DEPLOY_SMLATB(a, b, sum) __smlatb(a, b, sum)
#define TVM_DEPLOY_SXTB16(a) __sxtb16(a)
#else
#define TVM_DEPLOY_LOW(a) ((int32_t)(int16_t)(uint16_t)((uint32_t)(a) & 0xffffu))
#define TVM_DEPLOY_HIGH(a) ((int32_t)(int16_t)(uint16_t)((uint32_t)(a) >> 16))
#define TVM_DEPLOY_ADDED(a, b) ((int32_t)((uint32_t)(a) + (uint32_t)(b)))
#define TVM_DEPLOY_SMLABB(a, b, sum) TVM_DEPLOY_ADDED(sum, TVM_DEPLOY_LOW(a) * TVM_DEPLOY_LOW(b))
#define TVM_DEPLOY_SMLATT(a, b, sum) TVM_DEPLOY_ADDED(sum, TVM_DEPLOY_HIGH(a) * TVM_DEPLOY_HIGH(b))
#define TVM_DEPLOY_SMLAD(a, b, sum) TVM_DEPLOY_SMLABB(a, b, TVM_DEPLOY_SMLATT(a, b, sum))
#define TVM_DEPLOY_SMLABT(a, b, sum) TVM_DEPLOY_ADDED(sum, TVM_DEPLOY_LOW(a) * TVM_DEPLOY_HIGH(b))
#define TVM_DEPLOY_SMLATB(a, b, sum) TVM_DEPLOY_ADDED(sum, TVM_DEPLOY_HIGH(a) * TVM_DEPLOY_LOW(b))
#define TVM_DEPLOY_SXTB16(a) TVM_DEPLOY_WORD((int8_t)(uint8_t)(a), (int8_t)(uint8_t)((uint32_t)(a) >> 16))
#endif
#define TVM_DEPLOY_WORD(low, high) \\
  ((int32_t)((uint32_t)(uint16_t)(int16_t)(low) | (uint32_t)(uint16_t)(int16_t)(high) << 16))

static int32_t tvm_deploy_word(const int16_t *from) {
#if defined(__ARM_FEATURE_DSP) && __ARM_FEATURE_DSP
  int32_t word;
  memcpy(&word, from, sizeof word);
  return word;
#else
  return TVM_DEPLOY_WORD(from[0], from[1]);
#endif
}
"""
_OPERATIONS = {"lad": "SMLAD", "labt": "SMLABT", "latb": "SMLATB"}
_FIXED = {
    WIDEN: function(
        WIDEN,
        "const int8_t *from, int16_t *to, int32_t count",
        ["for (int32_t index = 0; index < count; ++index) to[index] = from[index];"],
    ),
    FILL: function(
        FILL,
        "int16_t *to, int32_t count, int32_t value",
        ["for (int32_t index = 0; index < count; ++index) to[index] = (int16_t)value;"],
    ),
}


def in_c(symbol: str) -> str | None:
    """The function of a symbol, where it is one of those."""
    if (kernel := MicroKernel.of(symbol)) is not None:
        return _product(kernel)
    if (depthwise := DepthwiseKernel.of(symbol)) is not None:
        return _depthwise(depthwise)
    if (plane := Plane.of(symbol)) is not None:
        return _plane(plane)
    return _FIXED.get(symbol)


def _product(kernel: MicroKernel) -> str:
    sums = [(pixel, channel) for pixel in range(kernel.pixels) for channel in range(kernel.channels)]
    places = {(p, c): (f"s{p}_{c}", f"sums[{p * kernel.channels + c}]") for p, c in sums}
    turns, rest = divmod(kernel.pairs, 2)
    row = repeated(turns, _steps(kernel, 2)) + (_steps(kernel, rest) if rest else [])
    row += ["activations += pitch / 2;"] if kernel.rows > 1 else []
    lines = [
        f"int32_t {', '.join(f'{name} = {place}' for name, place in places.values())};",
        *repeated(kernel.rows, row, "row"),
        *(f"{place} = {name};" for name, place in places.values()),
        *([] if kernel.rows > 1 else ["(void)pitch;"]),
    ]
    parameters = "const int16_t *activations, const int16_t *weights, int32_t *sums, int32_t pitch"
    return function(kernel.symbol, parameters, lines)


def _steps(kernel: MicroKernel, count: int) -> list[str]:
    """Two activations of each pixel times those weights of every channel, so many times."""
    lines = []
    for step in range(count):
        pixels = [f"x{p} = tvm_deploy_word(activations + {p * kernel.step + 2 * step})" for p in range(kernel.pixels)]
        lines += ["{", f"  const int32_t {', '.join(pixels)};", "  int32_t w;"]
        for pair in range(kernel.channels // 2):
            lines.append(f"  w = tvm_deploy_word(weights + {step * kernel.channels + 2 * pair});")
            for channel in (2 * pair + 1, 2 * pair):
                lines += ["  w = TVM_DEPLOY_SXTB16(w);"] if channel == 2 * pair else []
                for pixel in range(kernel.pixels):
                    total = f"s{pixel}_{channel}"
                    lines.append(f"  {total} = TVM_DEPLOY_SMLAD(x{pixel}, w, {total});")
        lines.append("}")
    return [*lines, *advanced("activations", 2 * count), *advanced("weights", count * kernel.channels)]


def _depthwise(kernel: DepthwiseKernel) -> str:
    """Two neighbouring sums at a time, which share words of pixels."""
    words, products = kernel.taps.words, kernel.products()
    body = ["int32_t s0 = 0, s1 = 0;"]
    for row in range(kernel.kernel_h):
        pixels = sorted({at for _, _, at, _ in products})
        loads = [f"x{at} = tvm_deploy_word(image + {row * kernel.pitch + 2 * at})" for at in pixels]
        taps = [f"w{tap} = tvm_deploy_word(taps + {2 * (row * words + tap)})" for tap in range(words)]
        body += ["{", f"  const int32_t {', '.join(taps)};", f"  const int32_t {', '.join(loads)};"]
        for total, how, at, tap in products:
            name = {"r2": "s0", "r3": "s1"}[total]
            body.append(f"  {name} = TVM_DEPLOY_{_OPERATIONS[how]}(x{at}, w{tap}, {name});")
        body.append("}")
    body += ["sums[0] = s0;", "sums[1] = s1;", "sums += 2;", *advanced("image", 2 * kernel.stride_w)]
    line = repeated(kernel.columns // 2, ["{", *(f"  {one}" for one in body), "}"])
    line += advanced("image", kernel.stride_h * kernel.pitch - kernel.stride_w * kernel.columns)
    lines = repeated(kernel.rows, line, "row")
    return function(kernel.symbol, "const int16_t *image, const int16_t *taps, int32_t *sums", lines)


def _plane(plane: Plane) -> str:
    sizes = (plane.height, plane.width, plane.channels, plane.top, plane.left, plane.rows, plane.pitch, plane.border)
    lines = PortablePlane(*sizes).copies()
    fill = f"for (int32_t index = 0; index < {plane.rows * plane.pitch}; ++index) plane[index] = {plane.border};"
    return function(plane.symbol, "const int8_t *channel, int16_t *plane", [fill, *lines])
