#!/usr/bin/env bash
# What a GPU machine that is had for minutes is to do.
#
#   benchmarks/gpu.sh visit [first|sanitizer|published|distill|PART ...]
#                     [--seconds N] [--limit PART=SECONDS] [--case PART=WORD]
#   benchmarks/gpu.sh build|test|peers|loss|steer|decode|distill|sanitize|all|tune ...
#                     [--again] [--seconds N] [--case WORD]
#
# A visit (benchmarks/first_contact.py) is what a call on such a machine is: parts that each have a
# bound of time, all that comes back in one archive, $OUT/<set>.tar.gz, and a table last. `first` is
# the first call on a GPU and nothing else is: does it run, is it right, how far from the goals. It
# takes 465 seconds at most (--seconds). `sanitizer`, `published` (the files of benchmarks/results/,
# which lie in results/ of the archive) and `distill` begin with the same smoke test; what does not
# pass it is not timed.
#
# A stage (benchmarks/stages.py) takes 300 seconds at most (--seconds) and writes one JSON into $OUT
# (default benchmarks/results) as it goes. What is there of this commit and device is not repeated
# without --again, `build` apart; what ran out of time goes on at the next call. --case chooses cases
# of a benchmark by a word of their names; it may be given again, as --limit may. DIVE_COMMIT names
# the commit where the copy has no git; without it a digest of the sources does (`python -m
# benchmarks.timing` prints that of a checkout).
# DIVE_GPU_TESTS and DIVE_SANITIZE_TESTS are pytest's arguments for `test` and `sanitize`.
# DIVE_BENCH_TOY=1 walks through everything on a CPU in minutes and leaves no results here.
#
# No minute of a GPU goes to a compiler: `make gpu-module` builds dive/_C.cpython-312-*.so here, for
# Python 3.12 and a C library from 2.34 on. It is used in place, from the root of the copy, and
# nothing is installed. Where it cannot be brought along, `build` compiles for one architecture.
# `tune` is not in `all`: it changes kernels/tuned.py on the machine, and leaves in $OUT the table to
# copy to kernels/ here; what was measured before it is repeated with --again.
#
# The machine needs Python, torch, triton, transformers, pytest. Peers that it lacks travel in
# wheels/: a visit imports those of pure Python from there, `build` installs all that is not there in
# that version. Made on a machine with a network (1 MB):
#
#   pip download -d wheels --no-deps --only-binary=:all: --python-version 3.12 \
#       liger-kernel cut-cross-entropy
#
# `build` needs pybind11, cmake, ninja, setuptools>=77 and nvcc beside them. quack-kernels needs
# nvidia-cutlass-dsl, apache-tvm-ffi, torch-c-dlpack-ext and einops.
set -euo pipefail
cd "$(dirname "$0")/.."
export DIVE_CUDA_ARCHS="${DIVE_CUDA_ARCHS:-90a}"
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
module=benchmarks.stages
if [ "${1:-}" = visit ]; then
  shift
  module=benchmarks.first_contact
fi
has_torch='import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'
if [ -z "${PYTHON:-}" ]; then
  for name in python3 python python3.12; do
    if "$name" -c "$has_torch" 2> /dev/null; then PYTHON="$name"; break; fi
  done
fi
if [ -z "${PYTHON:-}" ]; then
  echo "gpu.sh: no python3, python or python3.12 on PATH has torch; PYTHON names one that has" >&2
  exit 2
fi
exec "$PYTHON" -m "$module" "$@"
