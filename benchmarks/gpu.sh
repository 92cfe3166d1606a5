#!/usr/bin/env bash
# The benchmarks on a GPU machine that is only available for minutes.
#
#   benchmarks/gpu.sh visit [first|sanitizer|published|distill|PART ...]
#                     [--seconds N] [--limit PART=SECONDS] [--case PART=WORD]
#   benchmarks/gpu.sh build|test|peers|loss|steer|steer-grouped|decode|distill|sanitize|all|tune ...
#                     [--again] [--seconds N] [--case WORD]
#
# A visit (benchmarks/first_contact.py) is one call on such a machine: parts with a time limit each,
# one archive with all results, $OUT/<set>.tar.gz, and a table at the end. `first` is the first call
# on a GPU: does it run, is it correct, how far from the goals. It takes 465 seconds at most
# (--seconds). `sanitizer`, `published` (the files of benchmarks/results/, in results/ of the archive)
# and `distill` begin with the same smoke test; what does not pass it is not timed.
#
# A stage (benchmarks/stages.py) takes 300 seconds at most (--seconds) and writes one JSON into $OUT
# (default benchmarks/results), case by case. Results of this commit and device are not repeated
# without --again, except `build`; a stage that ran out of time continues at the next call. --case
# chooses cases of a benchmark by a word of their names; it may be repeated, and so may --limit.
# DIVE_COMMIT names the commit if the copy has no git; without it a digest of the sources does
# (`python -m benchmarks.timing` prints that of a checkout).
# DIVE_GPU_TESTS and DIVE_SANITIZE_TESTS are pytest's arguments for `test` and `sanitize`.
# DIVE_BENCH_TOY=1 rehearses everything on a CPU in minutes and writes no results here.
#
# No GPU time is spent on compilation: `make gpu-module` builds dive/_C.cpython-312-*.so beforehand,
# for Python 3.12 and glibc 2.34 or newer. It is used in place, from the root of the copy, and nothing
# is installed. Where it cannot be copied, `build` compiles for one architecture.
# `tune` is not in `all`: it changes kernels/tuned.py on the machine, and writes the table to copy to
# kernels/ to $OUT; results from before are repeated with --again.
#
# The machine needs Python, torch, triton, transformers, pytest. Peers that it lacks are brought in
# wheels/: a visit imports those of pure Python from there, `build` installs those that are missing in
# that version. Made on a machine with a network (1 MB):
#
#   pip download -d wheels --no-deps --only-binary=:all: --python-version 3.12 \
#       liger-kernel cut-cross-entropy
#
# `build` also needs pybind11, cmake, ninja, setuptools>=77 and nvcc. quack-kernels needs
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
