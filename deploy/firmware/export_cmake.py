"""An artifact as a CMake project: the imported target `tvm_deploy::<prefix>`, and an example that builds. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from deploy.firmware import serial_program
from deploy.firmware.export_parts import Project, Tree, example, harness_files, memories_file
from deploy.firmware.link import MEMORIES

_START = ("memory.h", "stopwatch.h", "semihosting.h", "semihosting.c", "bare_metal.c")


def quoted(text: str) -> str:
    """Text as one argument of a CMake command."""
    escaped = "".join(f"\\{c}" if c in '\\"$' else c for c in text)
    return f'"{escaped}"'


def toolchain_file(project: Project) -> str:
    """`toolchain.cmake`: the compiler and the flags that the library was compiled with."""
    toolchain = project.target["toolchain"]
    system = "Generic" if project.is_firmware else "Linux"
    processor = "riscv32" if project.is_riscv else "arm" if project.is_firmware else _processor(project)
    flags = quoted(" ".join(project.flags))
    return "\n".join(
        [
            "# The compiler and flags that the library was compiled with:",
            "#   cmake -B build -DCMAKE_TOOLCHAIN_FILE=toolchain.cmake",
            f"set(CMAKE_SYSTEM_NAME {system})",
            f"set(CMAKE_SYSTEM_PROCESSOR {processor})",
            f"set(CMAKE_C_COMPILER {quoted(toolchain['cc'])})",
            f"set(CMAKE_ASM_COMPILER {quoted(toolchain['cc'])})",
            f"set(CMAKE_C_FLAGS_INIT {flags})",
            f"set(CMAKE_ASM_FLAGS_INIT {flags})",
            f"set(CMAKE_EXE_LINKER_FLAGS_INIT {quoted(' '.join(toolchain['ldflags']))})",
            "set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY) # a program needs start-up code",
            "",
        ]
    )


def _processor(project: Project) -> str:
    return str(project.target["tvm"].get("mtriple", "x86_64")).partition("-")[0]


def is_cross(project: Project) -> bool:
    """Whether the compiler is one for another machine than it runs on."""
    return project.is_firmware or "-" in Path(project.target["toolchain"]["cc"]).name


def cmake(project: Project) -> Tree:
    """The project's tree."""
    tree = {
        **project.headers("include"),
        f"lib/{project.archive}": project.library(),
    }
    if not project.is_firmware:
        shown = project.read("model_example.c").decode().replace('#include "model.h"', _include(project))
        tree["example/main.c"] = shown.encode()
        tree["CMakeLists.txt"] = _lists(project, _shared(project)).encode()
    else:
        tree["example/main.c"] = example(project).encode()
        tree |= harness_files("example/bare_metal", *_START, *_own_start(project), "firmware.ld")
        tree |= memories_file(project, "example/bare_metal")
        tree |= project.sources("src")
        tree |= harness_files("serial", *serial_program.HEADERS, *serial_program.SOURCES, _stopwatch(project))
        tree["serial/layers.c"] = serial_program.layers_source(project.prefix, "../src/model.c").encode()
        tree["CMakeLists.txt"] = _lists(project, _firmware(project)).encode()
    if is_cross(project):
        tree["toolchain.cmake"] = toolchain_file(project).encode()
    return tree | project.common("cmake", _usage(project))


def _include(project: Project) -> str:
    return f'#include "{project.prefix}/model.h"'


def _own_start(project: Project) -> tuple[str, ...]:
    return ("start_riscv.S",) if project.is_riscv else ("start_cortex_m.c",)


def _stopwatch(project: Project) -> str:
    return "stopwatch_riscv.c" if project.is_riscv else "stopwatch_board.c"


def _lists(project: Project, parts: Iterable[str]) -> str:
    name = f"tvm_deploy::{project.prefix}"
    kind = "STATIC" if project.is_firmware else "SHARED"
    soname = [] if project.is_firmware else [f"  IMPORTED_SONAME {quoted(project.archive)}"]
    return "\n".join(
        [
            f"# In a project of yours: add_subdirectory(this folder), target_link_libraries(program PRIVATE {name}).",
            "cmake_minimum_required(VERSION 3.16)",
            f"project({project.package} LANGUAGES C ASM)",
            "",
            f"add_library({name} {kind} IMPORTED GLOBAL)",
            f"set_target_properties({name} PROPERTIES",
            f"  IMPORTED_LOCATION ${{CMAKE_CURRENT_LIST_DIR}}/lib/{project.archive}",
            *soname,
            "  INTERFACE_INCLUDE_DIRECTORIES ${CMAKE_CURRENT_LIST_DIR}/include",
            "  INTERFACE_LINK_LIBRARIES m)",
            "",
            *parts,
            "",
        ]
    )


def _example_lines(project: Project, *libraries: str) -> list[str]:
    return [
        "if(CMAKE_SOURCE_DIR STREQUAL CMAKE_CURRENT_SOURCE_DIR)",
        f"  add_executable({project.prefix}_example example/main.c)",
        f"  target_link_libraries({project.prefix}_example PRIVATE tvm_deploy::{project.prefix}{''.join(libraries)})",
        "endif()",
    ]


def _shared(project: Project) -> list[str]:
    return _example_lines(project)


def _firmware(project: Project) -> list[str]:
    """The targets for programs without start-up code of their own, for a board's measuring program, and the example."""
    prefix, memory = project.prefix, project.target["memory"]
    first = [f"  -Wl,-T,${{bare_metal}}/{MEMORIES}"] if memories_file(project, "") else []
    lines = [*_from_source(project), *_serial(project), ""]
    if None in project.memory.places.values():
        return [
            *lines,
            "# The target does not say where its memories are, so that the example is compiled and not linked.",
            "if(CMAKE_SOURCE_DIR STREQUAL CMAKE_CURRENT_SOURCE_DIR)",
            f"  add_library({prefix}_example OBJECT example/main.c)",
            f"  target_link_libraries({prefix}_example PRIVATE tvm_deploy::{prefix})",
            "endif()",
        ]
    places = {"FLASH_AT": "flash_at", "FLASH_BYTES": "flash", "RAM_AT": "ram_at", "RAM_BYTES": "ram"}
    sources = [f"  ${{bare_metal}}/{name}" for name in (*_own_start(project), "semihosting.c", "bare_metal.c")]
    return [
        *lines,
        "# Start-up code and memories for a program that has none: an emulator's, or a debugger's with semihosting.",
        "set(bare_metal ${CMAKE_CURRENT_LIST_DIR}/example/bare_metal)",
        f"add_library({prefix}_bare_metal INTERFACE)",
        f"add_library(tvm_deploy::{prefix}_bare_metal ALIAS {prefix}_bare_metal)",
        f"target_sources({prefix}_bare_metal INTERFACE",
        *sources[:-1],
        f"{sources[-1]})",
        f"target_include_directories({prefix}_bare_metal INTERFACE ${{bare_metal}})",
        f"target_link_options({prefix}_bare_metal INTERFACE -nostartfiles -static -T ${{bare_metal}}/firmware.ld",
        *first,
        "  -Wl,--gc-sections -Wl,-e,reset -Wl,-u,reset",
        *(f"  -Wl,--defsym={name}=0x{memory[key]:x}" for name, key in places.items()),
        ")",
        "",
        *_example_lines(project, f" tvm_deploy::{prefix}_bare_metal"),
    ]


def _from_source(project: Project) -> list[str]:
    """A library of the sources, where all kernels are among them."""
    sources = sorted(project.sources("src"))
    if "src/kernels.c" not in sources:
        return []
    name = f"{project.prefix}_from_source"
    return [
        "# The same for any compiler: all of it is C99. GCC's own order of instructions needs more registers.",
        f"add_library({name} STATIC EXCLUDE_FROM_ALL",
        *(f"  {source}" for source in sources),
        ")",
        f"add_library(tvm_deploy::{name} ALIAS {name})",
        f"target_include_directories({name} PUBLIC include PRIVATE include/{project.prefix})",
        f"target_compile_options({name} PRIVATE",
        "  $<$<C_COMPILER_ID:GNU>:-O2> $<$<C_COMPILER_ID:GNU>:-fno-schedule-insns>)",
        f"target_link_libraries({name} PUBLIC m)",
        "",
    ]


def _serial(project: Project) -> list[str]:
    prefix, header = project.prefix, project.read("model.h").decode()
    identity = serial_program.build_id(project.library())
    calls = serial_program.calls_in(project.read("src/model.c").decode())
    defined = serial_program.definitions(prefix, header, project.memory, identity, calls)
    names = (*serial_program.SOURCES, _stopwatch(project), *(["layers.c"] if calls else []))
    return [
        "# The measuring program for a board with start-up code of its own: define the functions of serial/board.h and",
        "# call harness_serve() of serial/serial_harness.h when the board is ready.",
        "set(serial ${CMAKE_CURRENT_LIST_DIR}/serial)",
        f"add_library({prefix}_serial INTERFACE)",
        f"add_library(tvm_deploy::{prefix}_serial ALIAS {prefix}_serial)",
        f"target_sources({prefix}_serial INTERFACE",
        *(f"  ${{serial}}/{name}" for name in names),
        ")",
        f"target_include_directories({prefix}_serial INTERFACE",
        f"  ${{serial}} ${{CMAKE_CURRENT_LIST_DIR}}/include/{prefix})",
        f"target_compile_definitions({prefix}_serial INTERFACE",
        *(f"  {quoted(definition)}" for definition in defined),
        *(["  COUNT_CYCLES"] if project.is_riscv else []),
        ")",
        f"target_link_libraries({prefix}_serial INTERFACE tvm_deploy::{prefix})",
    ]


def _usage(project: Project) -> str:
    prefix = project.prefix
    configure = "cmake -B build" + (" -DCMAKE_TOOLCHAIN_FILE=toolchain.cmake" if is_cross(project) else "")
    text = f"""\
The example builds as it is:

```sh
{configure}
cmake --build build
```

In a CMake project of yours:

```cmake
add_subdirectory({prefix})
target_link_libraries(program PRIVATE tvm_deploy::{prefix})   # then #include "{prefix}/model.h"
```
"""
    if not project.is_firmware:
        return text
    return f"""{text}
`tvm_deploy::{prefix}_bare_metal` adds start-up code, a linker script and semihosting for programs that have none of
their own, such as the example. `tvm_deploy::{prefix}_serial` adds the program that `tvm-deploy measure` talks to over
a serial line: define the functions of `serial/board.h` and call `harness_serve()`. `src/` is what the library was
compiled from besides its kernels; to have the weights in another memory, compile `src/weights.c` with
`-DTVM_DEPLOY_WEIGHTS_SECTION=\\"NAME\\"` and link it before the library.
"""
