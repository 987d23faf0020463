"""The architecture as tests: who imports whom, where effects live, what a plain import costs, how large things are."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import deploy

ROOT = Path(__file__).resolve().parents[1]

# In the order that data flow in. A module imports only from those above it; a new module must take a place here.
ORDER = """
errors units statistics files yaml_source budget stopping fields battery host
target_memory target_parts target targets boards
shell toolchain progress
model_spec model_external model_qlinear model_onnx model_tflite model_tflite_fold model_torch model
relax_tflite_operator relax_tflite_moves relax_tflite_hybrid relax_tflite_linear relax_tflite
relax_onnx relax_torch relax_torch_quantized relax_import relax_rewrite relax_layout relax_transposes relax_fold
operators
channels channels.bounds channels.flow channels.products channels.moves channels.rules dead_channels
graph graph_from_relax
integer.fixed_point integer.rules integer.context integer.once integer.requantize integer.wide integer.tables
integer.conv integer.elementwise integer.pool integer.softmax integer.shapes integer.transform integer.as_float integer
kernels kernels.dot kernels.dot_intrinsics kernels.machine kernels.for_target kernels.buffers kernels.mathematics
kernels.compute kernels.packing kernels.quantized kernels.legalize kernels.legalize_quantized
kernels.roles kernels.schedule
kernels.micro kernels.micro.shapes kernels.micro.smlad kernels.micro.smlad_depthwise kernels.micro.helium
kernels.micro.helium_depthwise kernels.micro.portable kernels.micro.dsp_in_c kernels.micro.assembly
kernels.micro.c_source kernels.micro.compute kernels.micro.rows kernels.micro.helium_compute kernels.micro.scaling
kernels.micro.legalize kernels.micro.legalize_scaling kernels.micro.intrinsics kernels.micro.calls
kernels.micro.helium_multiply kernels.micro.schedule kernels.fallback kernels.default kernels.plain kernels.c_code
kernels.in_place
lower
power.trace power.reading power.evaluate power.sysfs power.integrate power.sampler power.rapl power.hwmon power.estimate
power.clock power.stream power.serial_port power.ppk2 power.lpm01a power.csv_text power.csv_meter power.scpi
power.meters power.picture power
artifact
firmware firmware.link firmware.size_map firmware.harness firmware.candidates firmware.serial_program
firmware.export_parts firmware.export_cmake firmware.export_zephyr firmware.export_libraries firmware.export_mlf
firmware.export
aot aot.place aot.plan aot.pools aot.plan_check aot.in_place aot.picture aot.weights aot.fit
aot.emit aot.emit_header aot.emit_source aot.emit_extras
aot.emit_firmware aot.archive aot.build
compile
runtime
device.protocol device.folder device.bench device.local device.qemu
device.ssh_script device.ssh_words device.ssh_link device.ssh_program device.ssh
device.rpc_wire device.rpc_link device.rpc_client device.rpc_session device.rpc_registration device.rpc_server
device.rpc_tunnel device.rpc_source device.rpc
device.serial_frames device.serial_link device.serial_image device.serial_board device.serial_energy
device.serial_candidates device.serial device
tuning tuning.task tuning.log_lines tuning.store tuning.current tuning.listing tuning.log_edit tuning.log_verify
tuning.log_plot tuning.kernel_id tuning.log tuning.guard tuning.reasons tuning.builder tuning.workshop tuning.farm
tuning.runner tuning.tally
tuning.board_health tuning.board_work tuning.board_queue tuning.board_pool tuning.board_runner
tuning.firmware_task tuning.firmware_shop tuning.firmware_image tuning.firmware_qemu tuning.firmware_serial
tuning.firmware_runner tuning.space tuning.experience tuning.explore tuning.ending tuning.search
measure expose reference verify
report.firmware report.model report.codec report.json_report report.judge report.power_words report.words
report.markdown report.text
report
evidence devices pipeline
arguments logs_command board_command cli
"""
LAYERS = ORDER.split()

LONGEST_MODULE, LONGEST_FUNCTION, MOST_PARAMETERS = 300, 40, 6
LARGE_MODULES: dict[str, int] = {}  # what is larger, and how large it may be: these only ever shrink
LARGE_FUNCTIONS: dict[str, int] = {}
WIDE_FUNCTIONS: dict[str, int] = {}


def name_of(path: Path) -> str:
    """The module's name below `deploy`; empty for the package itself."""
    return ".".join(path.relative_to(ROOT / "deploy").with_suffix("").parts).removesuffix("__init__").removesuffix(".")


FILES = {name_of(path): path for path in sorted((ROOT / "deploy").rglob("*.py"))}
MODULES = [name for name in FILES if name]


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text(encoding="utf-8"))


def of_types_only(module: ast.Module) -> set[ast.AST]:
    """The nodes below `if TYPE_CHECKING:`, which import nothing when the program runs."""
    blocks = [
        node
        for node in ast.walk(module)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    ]
    return {inner for block in blocks for statement in block.body for inner in ast.walk(statement)}


def imports(name: str) -> set[tuple[str, bool]]:
    """Every module that `name` imports anywhere, with whether it does so at its top level."""
    module = tree(name)
    skipped, top = of_types_only(module), set(module.body)
    found: set[tuple[str, bool]] = set()
    for node in ast.walk(module):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {(alias.name, node in top) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} uses a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_module = inner.removeprefix("deploy.") in FILES
                found.add((inner if is_module else str(node.module), node in top))
    return found


def mentions(name: str) -> set[str]:
    """Every dotted name in a module, such as `os.fork` or `print`."""
    return {ast.unparse(node) for node in ast.walk(tree(name)) if isinstance(node, ast.Attribute | ast.Name)}


def users(*wanted: str) -> set[str]:
    """Modules that import one of `wanted`, or mention a dotted name of that spelling."""
    return {
        name
        for name in FILES
        if any(module == w or module.startswith(f"{w}.") for module, _ in imports(name) for w in wanted)
        or mentions(name) & set(wanted)
    }


def test_every_module_has_its_place():
    assert sorted(MODULES) == sorted(set(LAYERS) & set(MODULES)), "a new module must take its place in LAYERS"
    assert len(LAYERS) == len(set(LAYERS))


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_from_those_above_it(name):
    place = LAYERS.index(name)
    for module, _ in imports(name):
        if module == "deploy" or module.startswith("deploy."):
            below = module.removeprefix("deploy").removeprefix(".")
            assert below, f"{name} imports the package itself"
            assert LAYERS.index(below) < place, f"{name} imports {below}, which does not stand above it"


def test_effects_live_where_they_belong():
    assert users("subprocess", "os.system", "os.popen", "os.execv", "os.execvp", "os.posix_spawn") == {"shell"}
    assert users("os.fork", "multiprocessing") <= {"tuning.builder", "device.rpc_server"}
    assert users("yaml") == {"yaml_source"}
    assert users("serial") == {"device.serial", "power.serial_port"}
    assert users("pyvisa") == {"power.scpi"}
    assert users("socket") == {"device.rpc_link", "device.rpc_server", "device.rpc_tunnel"}
    assert users("tvm.rpc") == {"board_command"}  # its tracker; servers and clients are in device/
    assert users("socketserver", "http", "urllib", "ssl", "requests") == set()
    assert users("print", "sys.stdout", "sys.stderr", "sys.exit", "input") == {"cli"}
    assert users("argparse") == {"arguments", "cli"}
    assert users("pickle", "marshal", "eval", "exec", "torch.load") == set()


def test_only_modules_that_compile_import_tvm_at_the_top():
    heavy = {name for name in MODULES if any(top and m.split(".")[0] == "tvm" for m, top in imports(name))}
    others = {name for name in heavy if not name.startswith(("aot.", "integer.", "kernels.", "tuning."))}
    assert others <= set(OF_TVM)
    assert not heavy & {"tuning.store", "tuning.listing", "kernels.for_target"}, "`logs` and `targets` need no TVM"
    frameworks = ("torch", "onnx", "onnxruntime", "onnxslim", "ai_edge_litert", "tflite", "xgboost")
    assert not {n for n in MODULES if any(top and m.split(".")[0] in frameworks for m, top in imports(n))}


OF_TVM = (
    *("lower", "compile", "graph_from_relax", "operators", "relax_rewrite", "relax_fold", "relax_layout"),
    "relax_transposes",
    *("relax_tflite_operator", "relax_tflite_moves", "relax_tflite_hybrid", "relax_tflite_linear", "relax_tflite"),
    *("dead_channels", "channels.flow", "channels.products", "channels.moves", "channels.bounds"),
)
LIGHT = {
    "import": "import deploy; deploy.load; import deploy.errors, deploy.targets, deploy.boards, deploy.report",
    "runtime": "import deploy.runtime",
    "model": "import deploy.model, deploy.reference, deploy.verify, deploy.pipeline, deploy.evidence",
    "help": "from deploy.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
    "targets": "from deploy.cli import main\nmain(['targets'])\nmain(['targets', 'show', 'host'])",
    "report": "from deploy.cli import main\nmain(['report', '/nowhere'])",
    "logs": "from deploy.cli import main\nmain(['logs', '--logs', '/nowhere'])",
    "export": "from deploy.cli import main\nmain(['export', '/nowhere', '--as', 'cmake'])",
    "check": "from deploy.cli import main\nmain(['check', '/nowhere', '--target', 'host'])",
}


@pytest.mark.parametrize("case", LIGHT)
def test_what_needs_no_tvm_does_not_load_it(case):
    heavy = "tvm", "tvm_ffi", "torch", "onnx", "onnxruntime", "ai_edge_litert", "xgboost"
    code = f"{LIGHT[case]}\nimport sys\nsys.stderr.write('loaded: %s' % sorted(set({heavy}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr.splitlines()[-1].endswith("loaded: []"), done.stderr


def test_modules_stay_small():
    sizes = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in FILES.items()}
    assert {n: s for n, s in sizes.items() if s > LARGE_MODULES.get(n, LONGEST_MODULE)} == {}
    assert [n for n in LARGE_MODULES if sizes[n] <= LONGEST_MODULE] == [], "small by now: take it off the list"


def test_functions_stay_small():
    functions = {
        f"{name}.{node.name}": node
        for name in FILES
        for node in ast.walk(tree(name))
        if isinstance(node, ast.FunctionDef)
    }
    lines = {name: (node.end_lineno or 0) - node.lineno + 1 for name, node in functions.items()}
    assert {n: s for n, s in lines.items() if s > LARGE_FUNCTIONS.get(n, LONGEST_FUNCTION)} == {}
    assert [n for n in LARGE_FUNCTIONS if lines[n] <= LONGEST_FUNCTION] == [], "small by now: take it off the list"
    given = {name: len([*node.args.posonlyargs, *node.args.args]) for name, node in functions.items()}
    assert {n: c for n, c in given.items() if c > WIDE_FUNCTIONS.get(n, MOST_PARAMETERS + 1)} == {}  # one may be self


def test_public_names():
    assert deploy.__all__ == ["load"]
    public = {name for name in vars(deploy) if not name.startswith("_")} - set(sys.modules) - {"annotations"}
    modules = {name.removeprefix("deploy.") for name in sys.modules if name.startswith("deploy.")}
    assert public - modules - {"Path", "TYPE_CHECKING"} == {"load"}


@pytest.mark.parametrize("name", FILES)
def test_every_module_says_what_it_is(name):
    assert ast.get_docstring(tree(name))
