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

// ValueError with the text.
[[noreturn]] void fail(const std::string& text);

// From "cpu", or "cuda:" and a number; of a GPU that this build has kernels for.
dlpack::Device device_from(const std::string& name);
// Where this build's tensors of a device lie: on the host too, where the host plays the GPU.
dlpack::Device tensors_of(dlpack::Device device);
// The entry "device" of a description; "cpu" where there is none.
dlpack::Device read_device(const pybind11::dict& description);

// Both hold pointers into the tensors, which are put into `kept` and must live on there: what they
// were read from may make them anew at every look, or be emptied. ValueError names the entry that
// is bad, what it got and what it wants.
using Kept = std::vector<TensorArgument>;
DecoderSpec read_decoder(const pybind11::dict& description, dlpack::Device device, Kept& kept);
std::vector<RopeSpec> read_ropes(const pybind11::list& ropes, const DecoderSpec& model,
                                 dlpack::Device device, Kept& kept);

}  // namespace dive
