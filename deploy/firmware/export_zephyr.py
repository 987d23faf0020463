"""An artifact as a Zephyr module with a sample. Pure."""

from __future__ import annotations

from deploy.firmware.export_parts import (
    Project,
    Tree,
    architecture_flag,
    call_of_example,
    memory_of_example,
)
from deploy.target_memory import section_macro


def _requirements(project: Project) -> list[str]:
    """What Kconfig must have for the library to fit the processor and the rest of the program."""
    if project.is_riscv:
        return ["RISCV"]
    cpu = architecture_flag(project, "cpu")
    needed = ["ARM", *([f"CPU_{cpu.upper().replace('-', '_')}"] if cpu else [])]
    return [*needed, *(["FP_HARDABI"] if architecture_flag(project, "float-abi") == "hard" else [])]


def zephyr(project: Project) -> Tree:
    """The module's tree."""
    symbol, sample = f"TVM_DEPLOY_{project.macro}", f"samples/{project.prefix}"
    texts = {
        "zephyr/module.yml": f"name: {project.package}\nbuild:\n  cmake: zephyr\n  kconfig: zephyr/Kconfig\n",
        "zephyr/CMakeLists.txt": _lists(project, symbol),
        "zephyr/Kconfig": _kconfig(project, symbol),
        f"{sample}/CMakeLists.txt": _sample_lists(project),
        f"{sample}/prj.conf": "".join(f"{line}\n" for line in _configuration(project, symbol)),
        f"{sample}/sample.yaml": _sample_yaml(project),
        f"{sample}/src/main.c": _main(project),
    }
    return {
        **{path: text.encode() for path, text in texts.items()},
        **project.headers("include"),
        f"lib/{project.archive}": project.library(),
        **project.sources("src"),
        **project.common("zephyr", _usage(project, symbol)),
    }


def _lists(project: Project, symbol: str) -> str:
    return f"""\
if(CONFIG_{symbol})
  zephyr_include_directories(${{CMAKE_CURRENT_LIST_DIR}}/../include)
  zephyr_library_import({project.package} ${{CMAKE_CURRENT_LIST_DIR}}/../lib/{project.archive})
endif()
"""


def _kconfig(project: Project, symbol: str) -> str:
    depends = "".join(f"\tdepends on {name}\n" for name in _requirements(project))
    return f"""\
config {symbol}
\tbool "The model {project.prefix}, compiled by tvm-deploy"
{depends}\thelp
\t  Link the model's library and find its header, {project.prefix}/model.h.
"""


def _configuration(project: Project, symbol: str) -> list[str]:
    hard = "FP_HARDABI" in _requirements(project)
    return [*(["CONFIG_FPU=y", "CONFIG_FP_HARDABI=y"] if hard else []), f"CONFIG_{symbol}=y", "CONFIG_PRINTK=y"]


def _sample_lists(project: Project) -> str:
    return f"""\
cmake_minimum_required(VERSION 3.20.0)
list(APPEND ZEPHYR_EXTRA_MODULES ${{CMAKE_CURRENT_SOURCE_DIR}}/../..)
find_package(Zephyr REQUIRED HINTS $ENV{{ZEPHYR_BASE}})
project({project.prefix}_sample)
target_sources(app PRIVATE src/main.c)
"""


def _sample_yaml(project: Project) -> str:
    return f"""\
sample:
  name: {project.package}
tests:
  sample.{project.package}:
    harness: console
    harness_config:
      type: one_line
      regex:
        - "{project.prefix}: status 0"
"""


def _main(project: Project) -> str:
    return f"""\
/* Runs the model once, on zeros, and prints its status and how long it took. */
#include <zephyr/kernel.h>
#include <zephyr/sys/printk.h>

#include "{project.prefix}/model.h"

{memory_of_example(project)}
int main(void) {{
  const uint32_t start = k_cycle_get_32();
  const int32_t status = {call_of_example(project)};
  const uint32_t cycles = k_cycle_get_32() - start;
  printk("{project.prefix}: status %d, %u cycles\\n", (int)status, (unsigned)cycles);
  return 0;
}}
"""


def _usage(project: Project, symbol: str) -> str:
    return f"""\
A Zephyr module: name this folder in `ZEPHYR_EXTRA_MODULES` (or in a west manifest) and set `CONFIG_{symbol}=y`, which
depends on {", ".join(f"`{name}`" for name in _requirements(project))}. The sample does so:

```sh
west build -b BOARD samples/{project.prefix}
```
{_dtcm(project)}"""


def _dtcm(project: Project) -> str:
    """Zephyr's own section for one of the pools that people have."""
    if "dtcm" not in project.pools:
        return ""
    define = f'{section_macro("dtcm")}=\\".dtcm_noinit\\"'
    return f"""
Where the board's devicetree has a `zephyr,dtcm`, its section for such buffers is `.dtcm_noinit`: in the sample's
`CMakeLists.txt`, `target_compile_definitions(app PRIVATE {define})`.
"""
