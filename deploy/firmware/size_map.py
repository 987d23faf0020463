"""What is in an image and how large it is, from the map that GNU ld writes. Pure.

```
.text           0x0000000000000000      0x8d4
 .text.net_run  0x0000000000000000       0x9c libmodel.a(model.o)
 .rodata.net_weights
                0x00000000000000a0      0x240 libmodel.a(weights.o)
 *fill*         0x00000000000002e0        0x8
```
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

_START = "Linker script and memory map"
_OUTPUT = re.compile(r"^(\.\S+|/DISCARD/)")
_PIECE = re.compile(r"^ (\S+)\s+0x[0-9a-f]+\s+0x([0-9a-f]+)(?:\s+(\S.*))?$")
_IN_FLASH = (".text", ".ARM.extab", ".ARM.exidx", ".data")

_CODE = ("kernels.o", "micro.o")  # of the archive: the kernels, and the micro-kernels that they call


@dataclass(frozen=True)
class FlashSizes:
    """Bytes of flash that a model takes: its weights, its kernels, the calls of them, and the toolchain's functions.

    external: weights in the external flash instead, of which `total` does not tell.
    """

    weights: int
    code: int
    glue: int
    libraries: int
    external: int = 0

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.weights + self.code + self.glue + self.libraries

    def outside(self) -> FlashSizes:
        """The same with the weights in the external flash."""
        return replace(self, weights=0, external=self.weights)


def pieces(text: str) -> list[tuple[str, str, int]]:
    """Output section, file ("libmodel.a(model.o)", empty for padding) and bytes of all that an image has of a map."""
    lines = text.partition(_START)[2].splitlines()
    found: list[tuple[str, str, int]] = []
    section, name = "", ""
    for line in lines:
        if output := _OUTPUT.match(line):
            section, name = output[1], ""
        elif re.match(r"^ \S+$", line):  # a name so long that the rest is on the next line
            name = line
        else:
            match = _PIECE.match(name + line if name else line)
            name = ""
            if match and int(match[2], 16) and (match[3] or match[1] == "*fill*"):
                found.append((section, match[3] or "", int(match[2], 16)))
    return found


def flash_sizes(text: str) -> FlashSizes:
    """The flash of an image that holds nothing but a model's library; padding counts as glue."""
    parts = dict.fromkeys(("weights.o", *_CODE, "model.o", ""), 0)
    for section, file, size in pieces(text):
        if section in _IN_FLASH:
            member = next((name for name in parts if name and file.endswith(f"({name})")), "" if file else "model.o")
            parts[member] += size
    return FlashSizes(parts["weights.o"], sum(parts[name] for name in _CODE), parts["model.o"], parts[""])
