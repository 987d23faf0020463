"""What the tests of boards over RPC share, beside the boards themselves (benchmarks/rpc_farm.py)."""

import shutil
from dataclasses import replace

from device_contract import C_FOLDER, MODEL_C, VARIANTS

from deploy.target import from_text
from deploy.target_parts import DeviceSpec

NATIVE = "name: board\ndescription: d\ntvm: {kind: llvm, mcpu: detect}\n"


def artifact_folders(tmp_path_factory):
    """For each variant of the contract's model an artifact's folder as far as a board needs one."""
    made = {}
    for name, defines in VARIANTS.items():
        folder = tmp_path_factory.mktemp(name)
        (folder / "src").mkdir()
        lines = [f"#define {define.removeprefix('-D').replace('=', ' ')}\n" for define in defines]
        (folder / "src" / "model.c").write_text("".join(lines) + MODEL_C)
        shutil.copy(C_FOLDER / "tvm_deploy.h", folder)
        (folder / "libmodel.so").write_text("it is not what runs")
        made[name] = folder / "libmodel.so"
    return made


def board(**options):
    """This machine as a target whose device is a board over RPC."""
    return replace(from_text(NATIVE, "board.yaml"), device=DeviceSpec("rpc", tuple(options.items())))


def at(place, **options):
    """This machine as a board at an address."""
    return board(host=place.host, port=place.port, **options)
