"""An artifact as an Arduino library or a PlatformIO library, both with the library compiled already. Pure."""

from __future__ import annotations

import json

from deploy.firmware.export_parts import (
    Project,
    Tree,
    architecture_flag,
    call_of_example,
    example,
    memory_of_example,
    path_stem,
)

# Arduino's cores name the FPU by GCC's -mfpu; -mcpu alone means these.
_FPU = {"cortex-m4": "fpv4-sp-d16", "cortex-m7": "fpv5-sp-d16", "cortex-m33": "fpv5-sp-d16", "cortex-m55": "auto"}


def _version(project: Project) -> str:
    numbers = str(project.artifact.facts["versions"]["tvm-deploy"]).split(".")[:3]
    digits = ["".join(c for c in number if c.isdigit()) or "0" for number in numbers]
    return ".".join([*digits, "0", "0"][:3])


def _sentence(project: Project) -> str:
    return f"The model {project.title}, compiled for {project.target['name']}."


def _umbrella(project: Project) -> bytes:
    return f'/* What a sketch includes. */\n#include "{project.prefix}/model.h"\n'.encode()


def arduino_folder(project: Project) -> str:
    """Where Arduino looks for the library: by the processor, and by its floating point where that matters."""
    cpu, abi = path_stem(project), architecture_flag(project, "float-abi")
    if abi not in ("hard", "softfp"):
        return f"src/{cpu}"
    return f"src/{cpu}/{architecture_flag(project, 'fpu') or _FPU.get(cpu, 'auto')}-{abi}"


def arduino(project: Project) -> Tree:
    """An Arduino library's tree."""
    properties = {
        "name": project.package,
        "version": _version(project),
        "author": "tvm-deploy",
        "maintainer": "tvm-deploy",
        "sentence": _sentence(project),
        "paragraph": f"Call {project.prefix}_run; it allocates nothing.",
        "category": "Data Processing",
        "url": "https://tvm.apache.org",
        "architectures": "*",
        "includes": f"{project.package}.h",
        "precompiled": "true",
        "ldflags": f"-l{project.prefix}",
    }
    return {
        "library.properties": "".join(f"{key}={value}\n" for key, value in properties.items()).encode(),
        f"src/{project.package}.h": _umbrella(project),
        **project.headers("src"),
        f"{arduino_folder(project)}/{project.archive}": project.library(),
        "examples/Once/Once.ino": _sketch(project).encode(),
        **project.sources("extras/src"),
        **project.common("arduino", _arduino_usage(project)),
    }


def _sketch(project: Project) -> str:
    return f"""\
// Runs the model on zeros every second, and prints its status and how long it took.
#include <{project.package}.h>

{memory_of_example(project)}
void setup() {{ Serial.begin(115200); }}

void loop() {{
  const unsigned long start = micros();
  const int32_t status = {call_of_example(project)};
  const unsigned long taken = micros() - start;
  Serial.print("{project.prefix}: status ");
  Serial.print(status);
  Serial.print(", us ");
  Serial.println(taken);
  delay(1000);
}}
"""


def _arduino_usage(project: Project) -> str:
    return f"""\
An Arduino library: put this folder into the sketchbook's `libraries`, then `#include <{project.package}.h>`; the
example `Once` is a start. The compiled library is in `{arduino_folder(project)}`, where Arduino looks for it by the
board's `build.mcu` and its floating point flags. A core with others (many Cortex-M4 cores say `-mfloat-abi=softfp`)
needs a build for a target with the same flags in its `tvm` and `toolchain`.
"""


def platformio(project: Project) -> Tree:
    """A PlatformIO library's tree."""
    manifest = {
        "name": project.package,
        "version": _version(project),
        "description": _sentence(project),
        "keywords": "machine learning, inference, tvm",
        "frameworks": "*",
        "platforms": "*",
        "headers": f"{project.package}.h",
        "build": {
            "includeDir": "include",
            "srcFilter": "-<*>",
            "libArchive": False,
            "flags": ["-Iinclude", "-Llib", f"-l{project.prefix}"],
        },
        "examples": [{"name": "once", "base": "examples/once", "files": ["main.c"]}],
        "export": {"include": ["include", "lib", "src", "examples", "README.md", "LICENSE", "library.json"]},
    }
    return {
        "library.json": (json.dumps(manifest, indent=2) + "\n").encode(),
        f"include/{project.package}.h": _umbrella(project),
        **project.headers("include"),
        f"lib/{project.archive}": project.library(),
        **project.sources("src"),
        "examples/once/main.c": example(project).encode(),
        **project.common("platformio", _platformio_usage(project)),
    }


def _platformio_usage(project: Project) -> str:
    flags = " ".join(project.flags)
    return f"""\
A PlatformIO library: put this folder into a project's `lib`, or name it in `lib_deps = symlink://...`, then
`#include <{project.package}.h>`. The compiled library in `lib` is for boards whose program is compiled with `{flags}`;
`src` is what it was compiled from besides its kernels, and is not compiled again.
"""
