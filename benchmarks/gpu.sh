#!/usr/bin/env bash
# What a GPU machine that is had for minutes is to do, stage by stage.
#
#   benchmarks/gpu.sh build|test|peers|loss|steer|decode|distill|sanitize|all|tune ... [--again]
#
# A stage takes 8 minutes at most and writes one JSON into $OUT (default benchmarks/results) as it
# goes. What is there of this commit and device is not repeated without --again, `build` apart; what
# ran out of time goes on at the next call. DIVE_COMMIT names the commit where the copy has no git.
# DIVE_BENCH_TOY=1 walks through everything on a CPU in a minute and leaves no results here.
#
# Where a call may take 10 minutes and a machine may be had for 30, that is `build`, which compiles
# for one architecture, and one other stage a call; a machine that was given back is bare and begins
# with `build` again:
#
#   gpu.sh build test      gpu.sh build loss      gpu.sh build steer peers
#   gpu.sh build decode    gpu.sh build distill   gpu.sh build sanitize     gpu.sh build tune
#
# All but test, decode, distill and sanitize need of `build` the wheels alone. Results are written
# case by case, so a call that is cut off loses one case. `tune` is not in `all`: it changes
# kernels/tuned.py on the machine, and leaves in $OUT the table to copy to kernels/ here; what was
# measured before it is repeated with --again.
#
# The machine needs Python, torch, triton, transformers and, for `build`, nvcc. What else is missing
# and the machine has no network for travels in wheels/, of which `build` installs what is not
# there in that version. Made on a machine with a network (some 40 MB):
#
#   pip download -d wheels --no-deps --only-binary=:all: --python-version 3.12 \
#       --platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64 \
#       pybind11 cmake ninja "setuptools>=77" accelerate psutil pillow sentencepiece \
#       pytest pluggy iniconfig pytest-timeout pytest-benchmark py-cpuinfo2 \
#       hypothesis sortedcontainers liger-kernel cut-cross-entropy
#
# quack-kernels needs nvidia-cutlass-dsl, apache-tvm-ffi, torch-c-dlpack-ext and einops beside it.
set -euo pipefail
cd "$(dirname "$0")/.."
export DIVE_CUDA_ARCHS="${DIVE_CUDA_ARCHS:-90a}"
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
exec "${PYTHON:-python3}" -m benchmarks.stages "$@"
