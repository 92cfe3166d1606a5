// The decode step's kernels on a GPU: bfloat16, float16 and float32 weights.
//
// Tokens, lengths and positions live in device memory, and the kernels of a step are recorded once
// for each number of sequences: a step is then a few small copies and one launch.
//
// This header needs no CUDA, so that whoever makes a backend need not be compiled by nvcc.
#pragma once

#include <memory>
#include <string>

#include "../backend.h"

namespace dive::cuda {

// Whether a step of this model can run on the device; else why not.
std::string unsupported(const DecoderSpec& spec, int device);

// `spec` holds pointers into the memory of `device`. std::runtime_error where CUDA fails.
std::unique_ptr<Backend> make_backend(DecoderSpec spec, int device);

// A copy that is made behind what is on `stream`; see DeviceSteering for how the source must lie.
std::unique_ptr<Steering> make_steering(const SteeringSource& source, int device, void* stream);

}  // namespace dive::cuda
