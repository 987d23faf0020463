"""What every Device must do: a class of tests over the fixtures `device` (open) and `libraries`.

A device's own test file subclasses `DeviceContract` and supplies both fixtures; for a board, `build_libraries` with the
board's compiler. The models are hand-written C with the interface that compiled models have.
"""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import deploy
from deploy import shell
from deploy.budget import HOW
from deploy.device import RunPlan
from deploy.errors import DeployError, DeviceError, InputError
from deploy.model_spec import TensorSpec

PREFIX = "tiny"
INPUTS = (TensorSpec("x", (2, 3), "float32"), TensorSpec("n", (4,), "int8", 0.5, 1))
OUTPUTS = (TensorSpec("y", (3, 2), "float32"), TensorSpec("total", (), "int32"))
WEIGHT_BYTES = 24
ARENA_BYTES = 48
C_FOLDER = Path(deploy.__file__).parent / "aot" / "c"

# y = (2 x + 1) transposed, by way of the arena; total = sum of n.
MODEL_C = r"""
#include <math.h>
#include <stdlib.h>
#include <unistd.h>
#include "tvm_deploy.h"
#ifndef ARENA
#define ARENA 48
#endif
#ifndef ARENA_NEEDED
#define ARENA_NEEDED ARENA
#endif

static const float weights[6] = {1, 1, 1, 1, 1, 1};
static const int64_t x_shape[] = {2, 3}, y_shape[] = {3, 2}, n_shape[] = {4};
static const tvm_deploy_tensor_info inputs[] = {{"x", x_shape, 2, TVM_DEPLOY_FLOAT32, 24, 0, 0},
                                                {"n", n_shape, 1, TVM_DEPLOY_INT8, 4, 0.5, 1}};
static const tvm_deploy_tensor_info outputs[] = {{"y", y_shape, 2, TVM_DEPLOY_FLOAT32, 24, 0, 0},
                                                 {"total", 0, 0, TVM_DEPLOY_INT32, 4, 0, 0}};
static const tvm_deploy_model_info info = {"tiny \"net\"\xc3\xa9\n", 2, 2, inputs, outputs, ARENA, 64, 24, 1};
const tvm_deploy_model_info *tiny_describe(void) { return &info; }

int32_t tiny_call(const tvm_deploy_tensor *in, int32_t input_count, const tvm_deploy_tensor *out, int32_t output_count,
                  void *arena, size_t arena_bytes) {
  if (!arena) return TVM_DEPLOY_NULL_POINTER;
  if (arena_bytes < ARENA_NEEDED) return TVM_DEPLOY_ARENA_TOO_SMALL;
  if ((uintptr_t)arena % 64) return TVM_DEPLOY_ARENA_MISALIGNED;
  if (input_count != 2 || output_count != 2) return TVM_DEPLOY_WRONG_COUNT;
  if (in[0].dtype != TVM_DEPLOY_FLOAT32 || in[1].ndim != 1 || out[1].ndim != 0) return TVM_DEPLOY_WRONG_SHAPE;
  const float *x = in[0].data;
  const signed char *n = in[1].data;
  float *y = out[0].data;
  float local[12];
  float *work = ARENA >= 24 ? (float *)arena : local;
  for (int i = 0; i < 6; ++i) work[i] = 2 * x[i] + weights[i];
  for (int i = 0; i < 6; ++i) y[i % 3 * 2 + i / 3] = work[i];
  *(int32_t *)out[1].data = n[0] + n[1] + n[2] + n[3];
#ifdef SLEEP_US
  usleep(SLEEP_US);
#endif
#ifdef HANG
  for (;;) pause();
#endif
#ifdef SEGFAULT
  *(volatile int *)8 = 1;
#endif
#ifdef ILLEGAL
  __builtin_trap();
#endif
#ifdef ABORT
  abort();
#endif
#ifdef EXITS
  _exit(0);
#endif
#ifdef OVERRUN_ARENA
  ((volatile char *)arena)[ARENA] = 0;
#endif
#ifdef OVERRUN_OUTPUT
  y[6] = 0;
#endif
#ifdef STATUS
  return STATUS;
#endif
  return TVM_DEPLOY_OK;
}
"""
VARIANTS = {
    "good": (),
    "no_arena": ("-DARENA=0",),
    "slow": ("-DSLEEP_US=2000",),
    "hangs": ("-DHANG",),
    "segfaults": ("-DSEGFAULT",),
    "illegal": ("-DILLEGAL",),
    "aborts": ("-DABORT",),
    "exits": ("-DEXITS",),
    "arena_lies": ("-DARENA_NEEDED=1000",),
    "returns_8": ("-DSTATUS=8",),
    "overruns_arena": ("-DOVERRUN_ARENA",),
    "overruns_output": ("-DOVERRUN_OUTPUT",),
    "unresolved": ("-Dabort=missing_function", "-DABORT"),
}
QUICK = RunPlan(warmup_s=0.0, seconds=0.05, min_samples=8, max_samples=200, timeout_s=20)


@dataclass(frozen=True)
class Model:
    """The specs of the model above, as `deploy.measure` wants them."""

    inputs: tuple[TensorSpec, ...] = INPUTS
    outputs: tuple[TensorSpec, ...] = OUTPUTS


def build_libraries(folder, cc="cc", flags=()):
    """Compile every variant; returns name → library."""
    source = folder / "model.c"
    source.write_text(MODEL_C)
    libraries = {}
    for name, defines in VARIANTS.items():
        libraries[name] = folder / f"{name}.so"
        command = [cc, "-O1", "-w", "-shared", "-fPIC", *flags, *defines, f"-I{C_FOLDER}", source, "-o"]
        shell.run([*command, libraries[name]], timeout_s=60)
    return libraries


def samples(count):
    """Return `count` different samples of the model's inputs."""
    random = np.random.default_rng(7)
    return [
        [random.normal(size=(2, 3)).astype(np.float32), random.integers(-128, 128, 4).astype(np.int8)]
        for _ in range(count)
    ]


def reference(sample):
    """Return what the model gives for a sample."""
    x, n = sample
    return [(2 * x + 1).T, n.sum(dtype=np.int32)]


class DeviceContract:
    def run(self, device, library, inputs=None, outputs=OUTPUTS, plan=QUICK, prefix=PREFIX):
        return device.run(library, prefix, samples(1) if inputs is None else inputs, outputs, plan)

    def refused(self, device, libraries, name, words, plan=QUICK):
        """The library `name` gives a DeviceError of one sentence with `words`, and the device still works."""
        with pytest.raises(DeviceError, match=words) as caught:
            self.run(device, libraries[name], plan=plan)
        assert "\n" not in str(caught.value)
        assert self.run(device, libraries["good"]).inferences > 0

    def test_outputs_are_those_of_each_sample(self, device, libraries):
        inputs = samples(5)
        run = self.run(device, libraries["good"], inputs)
        assert len(run.outputs) == 5
        for given, got in zip(inputs, run.outputs, strict=True):
            for spec, expected, array in zip(OUTPUTS, reference(given), got, strict=True):
                assert (array.shape, array.dtype.name) == (spec.shape, spec.dtype)
                np.testing.assert_array_equal(array, expected)

    def test_outputs_can_be_written_to(self, device, libraries):
        self.run(device, libraries["good"]).outputs[0][0][...] = 0

    def test_inputs_need_not_be_contiguous_or_of_native_byte_order(self, device, libraries):
        ((x, n),) = samples(1)
        odd = [np.asfortranarray(x).astype(">f4"), np.repeat(n, 2)[::2]]
        (got,) = self.run(device, libraries["good"], [odd]).outputs
        np.testing.assert_array_equal(got[0], reference([x, n])[0])
        assert got[1] == reference([x, n])[1]

    def test_no_samples_only_times(self, device, libraries):
        run = self.run(device, libraries["good"], [])
        assert run.outputs == []
        assert run.samples_s

    def test_a_model_without_an_arena(self, device, libraries):
        run = self.run(device, libraries["no_arena"])
        assert run.arena_bytes == 0
        np.testing.assert_array_equal(run.outputs[0][0], reference(samples(1)[0])[0])

    def test_sizes_are_the_models(self, device, libraries):
        run = self.run(device, libraries["good"])
        assert (run.arena_bytes, run.weight_bytes, run.threads) == (ARENA_BYTES, WEIGHT_BYTES, 1)
        assert run.how in HOW

    def test_as_many_samples_as_asked_for(self, device, libraries):
        few = RunPlan(warmup_s=0, seconds=0.001, min_samples=25, max_samples=25, timeout_s=20)
        assert len(self.run(device, libraries["slow"], plan=few).samples_s) == 25
        run = self.run(device, libraries["good"])
        assert 8 <= len(run.samples_s) <= 200
        assert run.inferences > len(run.samples_s) * run.batch

    def test_times_are_those_of_one_inference(self, device, libraries):
        run = self.run(device, libraries["slow"])
        assert 0.002 <= min(run.samples_s) < 0.1
        assert max(self.run(device, libraries["good"]).samples_s) > 0

    def test_no_energy_unless_asked_for(self, device, libraries):
        run = self.run(device, libraries["good"])
        assert run.energy is None
        assert run.idle is None

    def test_energy_is_a_reading_or_says_why_not(self, device, libraries):
        plan = RunPlan(warmup_s=0, seconds=0.02, min_samples=8, max_samples=50, energy_seconds=0.2, timeout_s=20)
        run = self.run(device, libraries["good"], plan=plan)
        assert run.energy is not None
        if run.energy.complete:
            assert run.energy_inferences > 0
            assert 0.2 <= run.energy_busy_s <= run.energy.seconds
        else:
            assert run.energy.reason

    def test_a_status_is_named(self, device, libraries):
        self.refused(device, libraries, "returns_8", "returned 8: a thread pool that could not be started")
        self.refused(device, libraries, "arena_lies", "returned 2: an arena too small")

    def test_crashes(self, device, libraries):
        self.refused(device, libraries, "segfaults", "SIGSEGV")
        self.refused(device, libraries, "illegal", "instruction that this CPU does not have .*: compile it for")
        self.refused(device, libraries, "aborts", "SIGABRT")

    def test_a_library_that_ends_the_program(self, device, libraries):
        self.refused(device, libraries, "exits", "nothing")

    def test_writing_past_the_end_is_noticed(self, device, libraries):
        self.refused(device, libraries, "overruns_arena", "past the end of its arena")
        self.refused(device, libraries, "overruns_output", "past the end of output 0")

    def test_a_hanging_model_is_stopped_in_time(self, device, libraries):
        plan = RunPlan(warmup_s=0, seconds=0.1, min_samples=1, max_samples=10, timeout_s=1)
        started = time.monotonic()
        self.refused(device, libraries, "hangs", "did not finish within 1 s", plan)
        assert time.monotonic() - started < 10

    def test_what_is_not_a_library(self, device, libraries, tmp_path):
        good = libraries["good"].read_bytes()
        for name, data in {"empty": b"", "text": b"hello", "random": bytes(range(256)) * 20, "cut": good[:700]}.items():
            file = tmp_path / f"{name}.so"
            file.write_bytes(data)
            with pytest.raises(DeviceError):
                self.run(device, file)
        for file in (tmp_path / "missing.so", tmp_path):
            with pytest.raises(InputError, match="no library"):
                self.run(device, file)
        self.refused(device, libraries, "unresolved", "missing_function")

    def test_another_models_name(self, device, libraries):
        with pytest.raises(DeviceError, match="no symbol other_describe"):
            self.run(device, libraries["good"], prefix="other")
        with pytest.raises(InputError, match="not the C name"):
            self.run(device, libraries["good"], prefix="no; name")

    @pytest.mark.parametrize("extra", [-1, 1])
    def test_inputs_of_another_size(self, device, libraries, extra):
        x = np.zeros(6 + extra, np.float32)
        with pytest.raises(DeployError, match="bytes"):
            self.run(device, libraries["good"], [[x, np.zeros(4, np.int8)]] * 2)

    def test_outputs_of_another_model(self, device, libraries):
        other = (OUTPUTS[0], TensorSpec("total", (2,), "int32"))
        with pytest.raises(DeviceError, match=r"24 \+ 4 bytes, the model's 24 \+ 8"):
            self.run(device, libraries["good"], outputs=other)


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
