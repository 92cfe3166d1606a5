// A decoder's description as Python gives it (`dive.decode.spec`), checked entry by entry.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

#include "decoder.h"
#include "python/dlpack.h"
#include "python/tensor_argument.h"

namespace dive {

// Raises a ValueError with the text.
[[noreturn]] void fail(const std::string& text);

// Reads "cpu", or "cuda:" and a number where this build has CUDA.
dlpack::Device device_from(const std::string& name);
// The device of a backend's tensors: the host too in the build that runs CUDA on the host.
dlpack::Device tensors_of(dlpack::Device device);
// The entry "device" of a description; "cpu" where there is none.
dlpack::Device read_device(const pybind11::dict& description);

// Both hold pointers into the tensors, which `kept` then holds and keeps alive: their
// containers may make them anew at every access, or be emptied. ValueError names the bad entry,
// what it is and what is wanted.
using Kept = std::vector<TensorArgument>;
DecoderSpec read_decoder(const pybind11::dict& description, dlpack::Device device, Kept& kept);
std::vector<RopeSpec> read_ropes(const pybind11::list& ropes, const DecoderSpec& model,
                                 dlpack::Device device, Kept& kept);

}  // namespace dive
