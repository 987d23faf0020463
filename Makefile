# tvm-deploy: `make` lists what there is to do. Everything is installed into $(VENV), nothing outside it (but see APT_PACKAGES).

PYTHON ?= python3
VENV ?= .venv
TARGET ?= host
TRIALS ?= 64
# Tests of a file share what is expensive, so that a file stays together.
TEST_WORKERS ?= -n auto --maxprocesses 8 --dist loadfile
PYTEST_FLAGS ?=
BENCH_FLAGS ?=

# apache-tvm imports torch, and torch is installed before everything else, at one exact version: left to choose, pip may
# take a CUDA build of several gigabytes. Where a CPU build ("2.13.0+cpu") can be had this picks it, for it counts as
# newer than the plain 2.13.0; where pip offers only the plain one, that is what you get. To name a place that has CPU
# builds: make demo TORCH_FLAGS='--index-url ...'
TORCH ?= torch==2.13.0
TORCH_FLAGS ?=

# What the project needs from the system, as Debian names it. Installed by `make demo` and `make test` only if something
# is missing, and only as root where there is an apt-get; anyone else is told what to install.
APT_PACKAGES := gcc libc6-dev python3-venv
# For tests of other devices, which are skipped without it: cross compilers for microcontrollers and for Linux, emulators
# of both, and what stands for a board at the other end of SSH.
DEVICE_PACKAGES := gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm \
    gcc-riscv64-unknown-elf picolibc-riscv64-unknown-elf qemu-system-misc cmake make \
    gcc-aarch64-linux-gnu libc6-dev-arm64-cross gcc-arm-linux-gnueabihf libc6-dev-armhf-cross \
    gcc-riscv64-linux-gnu libc6-dev-riscv64-cross qemu-user-static openssh-client busybox
DEVICE_PROGRAMS := cmake arm-none-eabi-gcc qemu-system-arm riscv64-unknown-elf-gcc qemu-system-riscv32 \
    aarch64-linux-gnu-gcc arm-linux-gnueabihf-gcc riscv64-linux-gnu-gcc qemu-arm-static ssh busybox
# Only where nothing would start it as a service, and so open a port, unasked.
SSH_SERVER := $(if $(wildcard /run/systemd/system),,$(if $(wildcard /usr/sbin/sshd),,openssh-server))

PIP = $(VENV)/bin/python -m pip --disable-pip-version-check -qq
DIGITS := artifacts/digits

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test bench clean system device-tools

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-6s %s\n", $$1, $$2}' Makefile
	@echo "Variables: PYTHON=$(PYTHON) VENV=$(VENV) TARGET=$(TARGET) TRIALS=$(TRIALS) PYTEST_FLAGS= BENCH_FLAGS= TORCH_FLAGS="

demo: $(VENV)/.installed-demo $(DIGITS)/digits.onnx ## install, train a small CNN on real digits, deploy it for this machine
	$(VENV)/bin/tvm-deploy run $(DIGITS)/digits.onnx --target $(TARGET) --trials $(TRIALS) \
	    --inputs $(DIGITS)/digits_test.npz --out $(DIGITS)/deployed

test: $(VENV)/.installed-test device-tools ## install what tests need, then ruff, mypy and pytest
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/pytest $(TEST_WORKERS) $(PYTEST_FLAGS)

bench: $(VENV)/.installed-bench ## compare with LiteRT, ONNX Runtime and OpenVINO on this machine
	$(VENV)/bin/python benchmarks/x86.py --trials $(TRIALS) $(BENCH_FLAGS)

clean: ## remove the virtual environment, caches and everything built
	rm -rf $(VENV) artifacts build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(DIGITS)/digits.onnx: examples/digits/train.py | $(VENV)/.installed-demo
	$(VENV)/bin/python examples/digits/train.py --out $(DIGITS)

# One stamp for each set of packages; a change of pyproject.toml makes them stale.
$(VENV)/.installed-base: pyproject.toml | system
	@echo "Installing into $(VENV) (about a minute the first time)" >&2
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	@$(PIP) install $(TORCH_FLAGS) '$(TORCH)'
	@$(PIP) install -e .
	@touch $@

$(VENV)/.installed-demo: $(VENV)/.installed-base
	@$(PIP) install -e '.[demo]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed-base
	@$(PIP) install -e '.[bench]'
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed-base
	@$(PIP) install -e '.[test,demo,bench]'
	@touch $@

system:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "Python 3.11 or newer is needed, and $(PYTHON) is not. Name another: make PYTHON=python3.12" >&2; exit 1; }
	@command -v cc >/dev/null && $(PYTHON) -c 'import ensurepip' 2>/dev/null && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "Installing $(APT_PACKAGES)" >&2; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	        apt-get install -y -qq --no-install-recommends $(APT_PACKAGES) >/dev/null; \
	else \
	    echo "A C compiler (cc) and Python's venv are needed. Debian and Ubuntu: sudo apt-get install $(APT_PACKAGES)" >&2; \
	    exit 1; \
	fi

device-tools: | system
	@for program in $(DEVICE_PROGRAMS); do command -v $$program >/dev/null || missing="$$missing $$program"; done; \
	test -z "$(SSH_SERVER)" || missing="$$missing sshd"; test -z "$$missing" && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "Installing $(DEVICE_PACKAGES) $(SSH_SERVER)" >&2; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	        apt-get install -y -qq --no-install-recommends $(DEVICE_PACKAGES) $(SSH_SERVER) >/dev/null \
	        || echo "That failed: tests of other devices are skipped without$$missing" >&2; \
	else \
	    echo "Tests of other devices are skipped without$$missing. Debian and Ubuntu:" \
	        "sudo apt-get install $(DEVICE_PACKAGES) $(SSH_SERVER)" >&2; \
	fi
