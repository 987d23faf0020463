"""Exported projects: built with CMake and run in QEMU; what cannot be built here is checked for its structure."""

import json
import re
import shutil
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml
from built import SHARED, build, host, new_folder
from firmware_support import ARM, RISCV, needs
from models import tflite_quantized as q
from serial_support import on_pty, serial_target

from deploy import cli, evidence, model, reference, shell
from deploy.aot.archive import STRICT
from deploy.arguments import EXPORTS
from deploy.artifact import Artifact
from deploy.device.protocol import RunPlan
from deploy.device.serial import SerialDevice
from deploy.errors import InputError
from deploy.firmware.export import FORMATS, export
from deploy.firmware.export_cmake import quoted
from deploy.firmware.export_mlf import parameters, weights
from deploy.firmware.export_parts import MARKER, Project
from deploy.firmware.link import compile_command, link_command, source_path
from deploy.measure import combine
from deploy.targets import in_portable_c, load_target

pytestmark = pytest.mark.tvm
CMAKE = needs("cmake", "ninja")
M4, RV32 = "cortex-m4-mps2", "rv32imc-virt"
RUN = {
    M4: ["qemu-system-arm", "-M", "mps2-an386"],
    RV32: ["qemu-system-riscv32", "-M", "virt", "-bios", "none"],
}
BOARDS = [pytest.param(M4, marks=ARM), pytest.param(RV32, marks=RISCV)]


@cache
def source():
    net = q.Net(3)
    x = net.input(1, 6, 6, 3)
    net.outputs = [net.dense(net.reshape(net.conv(x, 4, 3, padding=1), 1, 64), 5)]
    file = new_folder() / "small net.tflite"
    file.write_bytes(net.pack())
    return model.load(file)


@cache
def artifact(board):
    return build(source(), host() if board == "host" else load_target(board))


@cache
def exported(board, kind):
    return export(artifact(board), kind, new_folder() / f"{board} {kind}")  # with a space, as people have


@cache
def sample():
    inputs = reference.sample_inputs(source(), 1, seed=5)[0]
    return inputs, reference.Reference(source()).run(inputs)


def cmake(folder, *flags):
    """Configure and build a project; the folder with what was built."""
    built = new_folder()
    shell.run(["cmake", "-G", "Ninja", "-S", folder, "-B", built, *flags], timeout_s=120)
    shell.run(["cmake", "--build", built], timeout_s=120)
    return built


def emulate(board, program):
    """Run a program that ends with semihosting; its exit status."""
    command = [*RUN[board], "-display", "none", "-semihosting-config", "enable=on,target=native", "-kernel", program]
    return shell.run(command, timeout_s=20, check=False).returncode


def user_s_project(board, main, *libraries, sources=(), one=None, library=""):
    """A project that has the exported one in a subfolder."""
    folder, prefix = new_folder(), artifact(board).prefix
    export(one or artifact(board), "cmake", folder / "net")
    (folder / "main.c").write_text(main)
    linked = " ".join(f"tvm_deploy::{prefix}{suffix}" for suffix in (library, *libraries))
    (folder / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.16)\nproject(user C ASM)\nadd_subdirectory(net)\n"
        f"add_executable(program main.c {' '.join(sources)})\ntarget_link_libraries(program PRIVATE {linked})\n"
    )
    return folder


def checking_main(prefix):
    """A program whose exit status says whether the model's output is what the source framework computed."""
    (inputs,), (outputs,) = sample()
    values = [", ".join(map(str, array.ravel())) for array in (inputs, outputs)]
    return f"""
#include <string.h>
#include "{prefix}/model.h"
static const int8_t in[] = {{{values[0]}}}, expected[] = {{{values[1]}}};
static int8_t out[{outputs.size}];
static unsigned char arena[{prefix.upper()}_ARENA_BYTES] __attribute__((aligned(64)));
int main(void) {{
  if ({prefix}_run(in, out, arena, sizeof arena) != TVM_DEPLOY_OK) return 1;
  return memcmp(out, expected, sizeof expected) == 0 ? 0 : 2;
}}
"""


@CMAKE
@pytest.mark.parametrize("board", BOARDS)
def test_the_cmake_project_builds_and_runs(board):
    folder = exported(board, "cmake")
    built = cmake(folder, f"-DCMAKE_TOOLCHAIN_FILE={folder / 'toolchain.cmake'}")
    assert emulate(board, built / f"{artifact(board).prefix}_example") == 0


@CMAKE
@ARM
def test_a_project_with_the_library_in_it_computes_what_the_model_does():
    folder = user_s_project(M4, checking_main(artifact(M4).prefix), "_bare_metal")
    built = cmake(folder, f"-DCMAKE_TOOLCHAIN_FILE={folder / 'net/toolchain.cmake'}")
    assert emulate(M4, built / "program") == 0


@CMAKE
@ARM
def test_kernels_in_c_are_compiled_in_the_project():
    one = build(source(), in_portable_c(load_target(M4)))
    folder = user_s_project(M4, checking_main(one.prefix), "_bare_metal", one=one, library="_from_source")
    built = cmake(folder, f"-DCMAKE_TOOLCHAIN_FILE={folder / 'net/toolchain.cmake'}")
    assert emulate(M4, built / "program") == 0


@CMAKE
@ARM
def test_the_serial_program_in_a_user_s_own_project():
    """No `flash`: the program was built by the user, has start-up code of its own, and is on the board already."""
    main = '#include "board.h"\n#include "serial_harness.h"\nint main(void) { board_init(); harness_serve(); }\n'
    folder = user_s_project(M4, main, "_serial", "_bare_metal", sources=["uart_cmsdk.c"])
    shutil.copy(source_path("uart_cmsdk.c"), folder)
    flags = "-DUART_AT=0x40004000 -DBOARD_CLOCK_HZ=25000000u -DBOARD_BAUD=115200u -Wall -Wextra -Werror"
    (folder / "CMakeLists.txt").open("a").write(f"separate_arguments(flags UNIX_COMMAND {quoted(flags)})\n"
                                                "target_compile_options(program PRIVATE ${flags})\n")  # fmt: skip
    built = cmake(folder, f"-DCMAKE_TOOLCHAIN_FILE={folder / 'net/toolchain.cmake'}")
    inputs, outputs = sample()
    plan = RunPlan(warmup_s=0.0, seconds=0.05, min_samples=2)
    with on_pty(M4, built / "program", counting=False) as port:
        target = replace(serial_target(M4, port, emulated=None, tick=None, board=None), clock=25e6)
        with SerialDevice(target) as device:
            found = device.run(artifact(M4).library, artifact(M4).prefix, [inputs], artifact(M4).outputs, plan)
    np.testing.assert_array_equal(found.outputs[0][0], outputs[0])
    assert (found.how, found.stack_bytes, len(found.layers)) == ("measured", None, len(artifact(M4).facts["calls"]))
    report = evidence.make_report(artifact(M4), target, None, None, combine([found], 1), None)
    assert (report.latency.how, report.firmware.how, report.firmware.layers) == ("measured", "measured", ())


@CMAKE
def test_a_shared_library_is_a_cmake_project_too():
    folder = exported("host", "cmake")
    built = cmake(folder)
    said = shell.run([built / f"{artifact('host').prefix}_example"], timeout_s=20).stdout
    assert said.count(" = ") == 5
    folder = user_s_project("host", checking_main(artifact("host").prefix))
    assert shell.run([cmake(folder) / "program"], timeout_s=20).returncode == 0
    assert not (folder / "net" / "toolchain.cmake").exists()


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "cmake"])
def test_other_formats_take_firmware(kind, tmp_path):
    with pytest.raises(InputError, match=f"is a shared library for Linux, and {kind} takes firmware; export it as cm"):
        export(artifact("host"), kind, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


ZEPHYR = r"""
project(Zephyr LANGUAGES C ASM)
file(STRINGS ${APPLICATION_SOURCE_DIR}/prj.conf lines REGEX "^CONFIG_")
foreach(line ${lines})
  string(REPLACE "=" ";" pair ${line})
  list(GET pair 0 name)
  set(${name} y)
endforeach()
set(ZEPHYR_LIBS)
function(zephyr_include_directories)
  target_include_directories(app PRIVATE ${ARGV})
endfunction()
function(zephyr_library_import name path)
  add_library(${name} STATIC IMPORTED GLOBAL)
  set_target_properties(${name} PROPERTIES IMPORTED_LOCATION ${path})
  set_property(GLOBAL APPEND PROPERTY ZEPHYR_LIBS ${name})
endfunction()
add_library(app STATIC)
target_include_directories(app PRIVATE ${Zephyr_DIR}/include)
foreach(module ${ZEPHYR_EXTRA_MODULES})
  file(STRINGS ${module}/zephyr/module.yml line REGEX "cmake:")
  string(REGEX REPLACE ".*cmake: *" "" place ${line})
  add_subdirectory(${module}/${place} module)
endforeach()
get_property(libraries GLOBAL PROPERTY ZEPHYR_LIBS)
add_executable(zephyr ${START})
target_include_directories(zephyr PRIVATE ${HARNESS})
target_link_options(zephyr PRIVATE ${LINKING})
target_link_libraries(zephyr -Wl,--whole-archive app ${libraries} -Wl,--no-whole-archive)
"""
KERNEL = """
#include <stdint.h>
static inline uint32_t k_cycle_get_32(void) { return 0; }
"""
PRINTK = """
#include <stdlib.h>
#include "../../semihosting.h"
static inline void printk(const char *format, int status, unsigned cycles) {
  (void)format; (void)cycles; host_exit(status == 0 ? 42 : 1);
}
"""


@CMAKE
@ARM
def test_the_zephyr_module_builds_with_what_zephyr_s_cmake_functions_do():
    """A stand-in for Zephyr: its CMake functions, its way of finding modules, and a printk that ends the program."""
    stub, folder = new_folder(), exported(M4, "zephyr")
    (stub / "include/zephyr/sys").mkdir(parents=True)
    (stub / "ZephyrConfig.cmake").write_text(ZEPHYR)
    (stub / "include/zephyr/kernel.h").write_text(KERNEL)
    (stub / "include/zephyr/sys/printk.h").write_text(PRINTK)
    shutil.copy(source_path("semihosting.h"), stub / "include")
    sample_folder = folder / "samples" / artifact(M4).prefix
    places = {"FLASH_AT": 0, "FLASH_BYTES": 1 << 20, "RAM_AT": 0x20000000, "RAM_BYTES": 1 << 20}
    linking = ["-nostartfiles", "-T", str(source_path("firmware.ld")), "-Wl,-e,reset",
               *(f"-Wl,--defsym={name}={value}" for name, value in places.items())]  # fmt: skip
    start = [str(source_path(name)) for name in ("start_cortex_m.c", "semihosting.c", "bare_metal.c")]
    built = cmake(
        sample_folder,
        f"-DZephyr_DIR={stub}", f"-DAPPLICATION_SOURCE_DIR={sample_folder}", f"-DSTART={';'.join(start)}",
        f"-DHARNESS={source_path('memory.h').parent}", f"-DLINKING={';'.join(linking)}",
        f"-DCMAKE_TOOLCHAIN_FILE={exported(M4, 'cmake') / 'toolchain.cmake'}",
    )  # fmt: skip
    assert emulate(M4, built / "zephyr") == 42


@pytest.mark.parametrize("board", BOARDS)
def test_the_zephyr_module_is_complete(board):
    folder, prefix = exported(board, "zephyr"), artifact(board).prefix
    described = yaml.safe_load((folder / "zephyr/module.yml").read_text())
    assert described["build"] == {"cmake": "zephyr", "kconfig": "zephyr/Kconfig"}
    kconfig = (folder / described["build"]["kconfig"]).read_text()
    defined = re.findall(r"^config (\w+)$", kconfig, re.MULTILINE)
    assert defined == [f"TVM_DEPLOY_{prefix.upper()}"]
    depends = re.findall(r"^\tdepends on (\w+)$", kconfig, re.MULTILINE)
    assert depends == (["ARM", "CPU_CORTEX_M4", "FP_HARDABI"] if board == M4 else ["RISCV"])
    configured = re.findall(r"^CONFIG_(\w+)=y$", (folder / f"samples/{prefix}/prj.conf").read_text(), re.MULTILINE)
    assert set(configured) - {"FPU", "FP_HARDABI", "PRINTK"} == set(defined)
    assert yaml.safe_load((folder / f"samples/{prefix}/sample.yaml").read_text())["sample"]["name"]


ARDUINO = """
#include <stdint.h>
static struct { void begin(long) {} template <class T> void print(T) {} template <class T> void println(T) {} } Serial;
static unsigned long micros() { return 0; }
static void delay(int) {}
"""


@ARM
def test_the_arduino_library_is_complete(tmp_path):
    folder, prefix = exported(M4, "arduino"), artifact(M4).prefix
    lines = (folder / "library.properties").read_text().splitlines()
    properties = dict(line.split("=", 1) for line in lines)
    assert {"name", "version", "author", "maintainer", "sentence", "paragraph", "category", "url", "architectures"} <= {
        *properties
    }
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", properties["name"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", properties["version"])
    assert (properties["precompiled"], properties["ldflags"]) == ("true", f"-l{prefix}")
    assert (folder / f"src/cortex-m4/fpv4-sp-d16-hard/lib{prefix}.a").read_bytes() == artifact(M4).library.read_bytes()
    assert (folder / "src" / properties["includes"]).is_file()
    assert not [path for path in (folder / "src").rglob("*") if path.suffix in (".c", ".S", ".cpp")]
    (tmp_path / "Arduino.h").write_text(ARDUINO)
    sketch = ["-x", "c++", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-Wno-unused-variable",
              f"-I{folder / 'src'}", "-include", tmp_path / "Arduino.h"]  # fmt: skip
    shell.run(["arm-none-eabi-gcc", *sketch, folder / "examples/Once/Once.ino"], timeout_s=60)


@RISCV
def test_arduino_finds_other_processors_elsewhere():
    prefix = artifact(RV32).prefix
    assert (exported(RV32, "arduino") / f"src/rv32imcvirt/lib{prefix}.a").is_file()


@ARM
def test_the_platformio_library_is_complete(tmp_path):
    folder = exported(M4, "platformio")
    manifest = json.loads((folder / "library.json").read_text())
    assert re.fullmatch(r"\d+\.\d+\.\d+", manifest["version"])
    assert (folder / "include" / manifest["headers"]).is_file()
    (example,) = manifest["examples"]
    main = folder / example["base"] / example["files"][0]
    assert all((folder / name).exists() for name in manifest["export"]["include"])
    toolchain, flags = load_target(M4).toolchain, manifest["build"]["flags"]
    include = [flag for flag in flags if flag.startswith("-I")]
    shell.run(compile_command(toolchain, [*STRICT, *include], main, tmp_path / "main.o"), timeout_s=60, cwd=folder)
    objects = [str(tmp_path / "main.o"), *(flag for flag in flags if not flag.startswith("-I"))]
    shell.run(link_command(toolchain, objects, str(tmp_path / "image"), entry="main"), timeout_s=60, cwd=folder)


@ARM
def test_the_model_library_format_is_complete():
    from tvm.runtime import load_param_dict

    folder, one = exported(M4, "mlf"), artifact(M4)
    metadata = json.loads((folder / "metadata.json").read_text())
    module = metadata["modules"][one.prefix]
    assert (metadata["version"], module["executors"], module["style"]) == (7, ["aot"], "full-model")
    (main,) = module["memory"]["functions"]["main"]
    assert main["workspace_size_bytes"] == one.arena_bytes
    assert main["inputs"][one.inputs[0].name] == {"dtype": "int8", "size": 108, "shape": [1, 6, 6, 3]}
    assert {path.name for path in (folder / "codegen/host/src").iterdir()} >= {"model.c", "weights.c"}
    assert (folder / f"codegen/host/lib/lib{one.prefix}.a").is_file()
    assert not (folder / "runtime").exists()
    loaded = load_param_dict((folder / f"parameters/{one.prefix}.params").read_bytes())
    stored = loaded[f"{one.prefix}_weights"].numpy()
    assert stored.dtype == np.uint8
    assert stored.tobytes() == weights(Project(one))
    assert stored.size == main["constants_size_bytes"] == one.facts["sizes"]["weight_bytes"]
    assert len(load_param_dict(parameters({}))) == 0


@ARM
@pytest.mark.parametrize("kind", FORMATS)
def test_every_export_has_a_licence_and_says_what_it_is(kind):
    folder, one = exported(M4, kind), artifact(M4)
    said = (folder / "README.md").read_text()
    assert "small net for cortex-m4-mps2" in said
    assert f"{one.prefix}_run" in said
    assert f"{one.arena_bytes} bytes of memory" in said
    assert "its licence holds" in (folder / "LICENSE").read_text()
    assert json.loads((folder / MARKER).read_text())["format"] == kind
    assert export(one, kind, new_folder() / "again") != folder
    here = (Path(__file__).resolve().parents[1], SHARED, Path.home(), Path(tempfile.gettempdir()))
    for path in (path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".a", ".params")):
        assert not any(f"{place}/".encode() in path.read_bytes() for place in here), path


@CMAKE
@ARM
def test_any_name_of_a_model_is_harmless():
    one = artifact(M4)
    named = Artifact(one.path, {**one.facts, "name": 'a "b" ${c}\n`|d`\\ é */ #'})
    for kind in FORMATS:
        folder = export(named, kind, new_folder() / kind)
        assert len((folder / "README.md").read_text().splitlines()) == len(
            (exported(M4, kind) / "README.md").read_text().splitlines()
        )
        if kind == "arduino":
            assert len((folder / "library.properties").read_text().splitlines()) == 12
    assert quoted('a"b\\$c') == r'"a\"b\\\$c"'


@ARM
def test_folders_are_replaced_only_where_they_are_exports(tmp_path):
    place = tmp_path / "out"
    export(artifact(M4), "cmake", place)
    export(artifact(M4), "mlf", place)
    assert (place / "metadata.json").is_file()
    assert not (place / "CMakeLists.txt").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="will not replace the folder"):
        export(artifact(M4), "cmake", mine)
    with pytest.raises(InputError, match=r'the format "zepher" is not one of cmake, .*; did you mean "zephyr"'):
        export(artifact(M4), "zepher", place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


@ARM
def test_an_artifact_that_is_not_what_was_built_is_refused(tmp_path):
    shutil.copytree(artifact(M4).path, tmp_path / "changed")
    (tmp_path / "changed/model.h").write_text("")
    with pytest.raises(InputError, match=r"model\.h changed since the build"):
        export(Artifact.open(tmp_path / "changed"), "cmake", tmp_path / "out")
    old = {**artifact(M4).facts, "target": {"name": "x", "tvm": {}}}
    with pytest.raises(InputError, match="does not say what it was compiled with; build the artifact again"):
        export(Artifact(artifact(M4).path, old), "cmake", tmp_path / "out")


@ARM
def test_the_command(tmp_path, capsys):
    assert tuple(FORMATS) == EXPORTS
    place = tmp_path / "out"
    assert cli.main(["export", str(artifact(M4).path), "--as", "zephyr", "--out", str(place)]) == 0
    assert capsys.readouterr().out == f"{place}\n"
    shutil.copytree(artifact(M4).path, tmp_path / "net")
    assert cli.main(["export", str(tmp_path / "net"), "--as", "mlf"]) == 0
    assert (tmp_path / "net-mlf/metadata.json").is_file()
    assert cli.main(["export", str(tmp_path), "--as", "mlf"]) == 2
    assert "is no artifact" in capsys.readouterr().err
