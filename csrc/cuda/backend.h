// The decode step's kernels on a GPU: bfloat16, float16 and float32 weights.
//
// Tokens, lengths and positions lie in device memory, and the kernels of a step are captured in a
// CUDA graph once per number of sequences: a step is then several small copies and one launch.
//
// This header needs no CUDA, so that its users need not be compiled by nvcc.
#pragma once

#include <memory>
#include <string>

#include "../backend.h"

namespace dive::cuda {

// The reason why a step of this model cannot run on the device; empty where it can.
std::string unsupported(const DecoderSpec& spec, int device);

// `spec` holds pointers into the memory of `device`. std::runtime_error where CUDA fails.
std::unique_ptr<Backend> make_backend(DecoderSpec spec, int device);

// A copy that is ordered after the work on `stream`; DeviceSteering states the layout of the
// source.
std::unique_ptr<Steering> make_steering(const SteeringSource& source, int device, void* stream);

}  // namespace dive::cuda
