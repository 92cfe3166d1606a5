// csrc/cuda/runtime.h's `launch` on the host. A part of that file, where Queue and Shape are known.
#pragma once

#include <tuple>

namespace dive::cuda {

template <class... P, class... A>
void launch(const Queue& queue, const Shape& shape, void (*kernel)(P...), A&&... arguments) {
  // the arguments' bytes are what a GPU gets: nothing in them may have a life of its own
  static_assert((std::is_trivially_copyable_v<P> && ...) && (!std::is_reference_v<P> && ...));
  host::Launch what;
  what.kernel = reinterpret_cast<const void*>(kernel);
  what.grid = shape.grid;
  what.threads = shape.threads;
  what.shared = shape.shared;
  what.cluster = shape.cluster;
  what.overlap = queue.overlap;
  what.body = [kernel, given = std::tuple<P...>(std::forward<A>(arguments)...)] {
    std::apply(kernel, given);
  };
  check(host::submit(queue.stream, what), "a kernel's launch");
}

}  // namespace dive::cuda
