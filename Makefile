# make demo | test | test-slow | hard | lint | bench | aot | lexicon | evidence
#                                          each installs what it needs into .venv first
# make test-vllm                          dive inside vLLM and over Ray, in an environment of their own
# make screenshot                          docs/report.png, README's picture of a page
# make wheel                               an sdist and a portable wheel in dist/, with tools of its own
# make gpu-module                          dive/_C for a GPU machine that is had for minutes
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WHEEL_TOOLS := build/wheel-tools
SOURCES := $(shell find csrc -type f 2>/dev/null)

.PHONY: demo test test-slow test-vllm hard lint format bench aot lexicon evidence screenshot wheel gpu-module clean

demo: $(VENV)/.installed
	$(BIN)/dive demo
	@echo
	@echo "Next: make test; or, on studies of your own: $(BIN)/dive distill --help"

# the longest files begin first (tests/conftest.py), so the order stays as it is collected
IN_TWO := -n 2 --dist loadfile --no-loadscope-reorder -q
test: $(VENV)/.installed
	$(BIN)/python -m pytest -m "not slow" $(IN_TWO)
	@echo
	@echo "Next: make test-slow, make demo; $(BIN)/dive doctor says what else can be installed."

# half a minute and more each: the CUDA sources through nvcc, and the benchmarks' stages
test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow $(IN_TWO)

# Adapters inside vLLM, and reports over Ray: with a vLLM for CPUs, whose torch and transformers are
# not those of .venv; up to an hour, and PICK chooses tests as pytest -m does. The checkout is imported,
# and its own metadata have the entry point by which vLLM finds dive.
SERVING := build/serving
PICK ?= vllm or ray
test-vllm: $(VENV)/.installed $(SERVING)/.installed
	PYTHONPATH=$(CURDIR) OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0 $(SERVING)/bin/python -m pytest \
	  -q -p no:cacheprovider -m "$(PICK)" tests/vllm tests/generation

SERVING_FILES := $(wildcard tests/vllm/environment/*)
$(SERVING)/.installed: pyproject.toml constraints.txt $(SERVING_FILES)
	test -x $(SERVING)/bin/python || $(PYTHON) -m venv $(SERVING)
	$(SERVING)/bin/python -m pip install -q --disable-pip-version-check packaging \
	  "$$(grep '^torch==' constraints.txt)"
	$(SERVING)/bin/python -m pip install -q --disable-pip-version-check --no-deps \
	  -r tests/vllm/environment/alone.txt
	$(SERVING)/bin/python tests/vllm/environment/needed.py pyproject.toml > $(SERVING)/needed.txt
	$(SERVING)/bin/python -m pip install -q --disable-pip-version-check -r $(SERVING)/needed.txt
	cp tests/vllm/environment/torchvision_without_cuda.* \
	  "$$($(SERVING)/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')"
	touch $@

# kills, two processes on one output, full disks, hostile files: up to an hour, SEED=N repeats one
SEED ?=
hard: $(VENV)/.installed
	$(BIN)/python tests/hard $(if $(SEED),--seed $(SEED))

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/clang-format --dry-run --Werror $(filter %.cpp %.h %.hpp %.cu %.cuh,$(SOURCES))

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(filter %.cpp %.h %.hpp %.cu %.cuh,$(SOURCES))

bench: $(VENV)/.installed
	$(BIN)/python -m pytest benchmarks --benchmark-only
	@echo
	@echo "Next: what was recorded is in benchmarks/README.md, with how to record it anew."

# needs no GPU
aot: $(VENV)/.installed
	$(BIN)/python tools/compile_kernels.py

# how the lexicon reads: marked sentences, and Open-i's reports where torchxrayvision brings them
lexicon: $(VENV)/.installed
	$(BIN)/python tools/measure_lexicon.py
	$(BIN)/python tools/measure_details.py
	$(BIN)/python tools/measure_language.py

# What README's tables and sentences rest on, from the records alone; an error if a page differs.
evidence: $(VENV)/.installed
	$(BIN)/python -m experiments.evidence

# README's picture: the demo's page, at a study. It wants Chromium and its driver (.ci/browser).
screenshot: $(VENV)/.installed
	$(BIN)/dive demo --out build/demo
	$(BIN)/python tools/screenshot_page.py build/demo/index.html docs/report.png \
	  --width 1600 --height 900 --hash "study=hospital100-test-012&show=1.7&theme=light"

# The wheel is built from the sdist, in an isolated environment. zig's clang and C++ library compile
# it for the C library of manylinux_2_28, whatever this machine's is; nvcc does not work with that
# library, so the CUDA kernels are not in it: docs/release.md.
MACHINE := $(shell uname -m)
wheel: $(WHEEL_TOOLS)/.installed
	mkdir -p build/wheel dist
	rm -f build/wheel/*.whl build/wheel/*.tar.gz
	zig="$$($(WHEEL_TOOLS)/bin/python -c 'import ziglang; print(ziglang.__path__[0])')/zig" && \
	  CXX="$$zig c++ -target $(MACHINE)-linux-gnu.2.28" DIVE_BUILD_CUDA=off \
	  $(WHEEL_TOOLS)/bin/python -m build --outdir build/wheel .
	PATH="$(WHEEL_TOOLS)/bin:$$PATH" $(WHEEL_TOOLS)/bin/python -m auditwheel repair \
	  --plat manylinux_2_28_$(MACHINE) --wheel-dir dist build/wheel/*.whl
	cp build/wheel/*.tar.gz dist/
	@ls -l dist

# the extra `wheel` alone, without the project and so without torch
$(WHEEL_TOOLS)/.installed: pyproject.toml constraints.txt
	test -x $(WHEEL_TOOLS)/bin/python || $(PYTHON) -m venv $(WHEEL_TOOLS)
	$(WHEEL_TOOLS)/bin/python -c "import tomllib; \
	  project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
	  print(*project['optional-dependencies']['wheel'], sep='\n')" > $(WHEEL_TOOLS)/wheel.txt
	$(WHEEL_TOOLS)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt \
	  -r $(WHEEL_TOOLS)/wheel.txt
	touch $@

# What benchmarks/gpu.sh takes along, so that no minute of a GPU goes to a compiler: the module for
# that machine's Python, with machine code for A100 and H100/H200 and PTX for others. It is not
# installed there. What is newer than its libraries is an error here and not there. (With libstdc++
# linked into it, a module wants the C library that this libstdc++ was built on: newer, not older.)
GPU_PYTHON ?= python3.12
GPU_ARCHS ?= 80;80-ptx;90a
GLIBC_MOST := 2.34
GLIBCXX_MOST := 3.4.30
GPU_TOOLS := build/gpu-tools
gpu-module: $(GPU_TOOLS)/.installed
	CUDACXX="$$($(GPU_TOOLS)/bin/python -c 'import sysconfig; \
	  print(sysconfig.get_paths()["purelib"])')/nvidia/cu13/bin/nvcc" \
	  DIVE_BUILD_CUDA=on DIVE_CUDA_ARCHS="$(GPU_ARCHS)" \
	  $(GPU_TOOLS)/bin/python setup.py -q build_ext --inplace --build-temp build/gpu-module
	@module="dive/_C$$($(GPU_TOOLS)/bin/python -c 'import sysconfig; \
	  print(sysconfig.get_config_var("EXT_SUFFIX"))')"; ls -l "$$module"; \
	  for most in GLIBC_$(GLIBC_MOST) GLIBCXX_$(GLIBCXX_MOST); do \
	    newest="$$(objdump -T "$$module" | grep -o "\b$${most%%_*}_[0-9.]*" | sort -Vu | tail -n 1)"; \
	    echo "it wants $$newest, at most $$most is known to be there"; \
	    printf '%s\n' "$$newest" "$$most" | sort -V | tail -n 1 | grep -qx "$$most" || exit 1; \
	  done

# the extra `cuda-build` and what compiles, for that Python, without the project and without torch
$(GPU_TOOLS)/.installed: pyproject.toml constraints.txt
	test -x $(GPU_TOOLS)/bin/python || $(GPU_PYTHON) -m venv $(GPU_TOOLS)
	$(GPU_TOOLS)/bin/python -c "import tomllib; found = tomllib.load(open('pyproject.toml', 'rb')); \
	  print(*found['build-system']['requires'], \
	  *found['project']['optional-dependencies']['cuda-build'], sep='\n')" > $(GPU_TOOLS)/tools.txt
	$(GPU_TOOLS)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt \
	  -r $(GPU_TOOLS)/tools.txt
	touch $@

# The extension is compiled here, so its sources are what this depends on: for the GPUs of this
# machine alone (a wheel is for all of them), and without CUDA where there is none.
$(VENV)/.installed: pyproject.toml setup.py CMakeLists.txt constraints.txt $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	DIVE_CUDA_ARCHS="$${DIVE_CUDA_ARCHS-native}" $(BIN)/python -m pip install -q \
	  --disable-pip-version-check -c constraints.txt -e '.[test,bench,dev,cuda-build]'
	touch $@

clean:
	rm -rf $(VENV) build dist dive/_C*.so
