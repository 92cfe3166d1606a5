# make demo | test | lint | bench | aot    each installs what it needs into .venv first
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc -type f 2>/dev/null)

.PHONY: demo test lint format bench aot wheel clean

demo: $(VENV)/.installed
	$(BIN)/dive demo
	@echo
	@echo "Next: make test; or, on studies of your own: $(BIN)/dive distill --help"

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile -q
	@echo
	@echo "Next: make demo; $(BIN)/dive doctor says what else can be installed."

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m mypy
	$(BIN)/clang-format --dry-run --Werror $(filter %.cpp %.h %.hpp %.cu %.cuh,$(SOURCES))

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(filter %.cpp %.h %.hpp %.cu %.cuh,$(SOURCES))

bench: $(VENV)/.installed
	$(BIN)/python -m pytest benchmarks --benchmark-only
	@echo
	@echo "Next: what was recorded is in benchmarks/README.md, with how to record it anew."

# needs triton, not a GPU: `pip install triton` where torch did not bring it
aot: $(VENV)/.installed
	$(BIN)/python -m dive.kernels.aot

wheel: $(VENV)/.installed
	$(BIN)/python -m pip wheel --no-deps --wheel-dir dist .

# The extension is compiled here, so its sources are what this depends on: for the GPUs of this
# machine alone (a wheel is for all of them), and without CUDA where there is none.
$(VENV)/.installed: pyproject.toml setup.py CMakeLists.txt constraints.txt $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	DIVE_CUDA_ARCHS="$${DIVE_CUDA_ARCHS-native}" $(BIN)/python -m pip install -q \
	  --disable-pip-version-check -c constraints.txt -e '.[test,bench,dev,cuda-build]'
	touch $@

clean:
	rm -rf $(VENV) build dist dive/_C*.so
