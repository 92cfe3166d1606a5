#!/usr/bin/env bash
# What a GPU machine that is had for minutes is to do, stage by stage.
#
#   benchmarks/gpu.sh build|test|peers|loss|steer|decode|distill|sanitize|all ... [--again]
#
# A stage takes 8 minutes at most and writes one JSON into $OUT (default benchmarks/results) as it
# goes. What is there of this commit and device is not repeated without --again, `build` apart; what
# ran out of time goes on at the next call. DIVE_COMMIT names the commit where the copy has no git.
# DIVE_BENCH_TOY=1 walks through everything on a CPU in a minute and leaves no results here.
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
