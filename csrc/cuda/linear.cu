#include "cuda/linear.h"

#include <algorithm>

namespace dive::cuda {
namespace {

constexpr int kTileBatch = 64;

// Bytes in flight per multiprocessor. An H200's memory needs 29 KiB at least (4.8 TB/s times
// 0.8 us); more slices than needed read more of x, which is no less than the weights for 32
// vectors.
constexpr int kUnderWay = 48 * 1024;

}  // namespace

int slices_for(int warps, int columns, int chunk, int bytes, int processors, int most) {
  const std::int64_t wanted = static_cast<std::int64_t>(processors) * kUnderWay;
  int slices = 1;
  // a slice of fewer than two chunks of columns has nothing to overlap
  while (slices < most && static_cast<std::int64_t>(warps) * slices * bytes < wanted &&
         columns >= 4 * chunk * slices) {
    slices *= 2;
  }
  return slices;
}

int slices_by_waves(int warps, int columns, int chunk, int concurrent, int most) {
  // in eighths of the time of a warp that has a row to itself
  const auto time = [&](int slices) {
    const std::int64_t blocks = (static_cast<std::int64_t>(warps) * slices + most - 1) / most;
    return (blocks + concurrent - 1) / concurrent * (8 / slices);
  };
  int best = 1;
  for (int slices = 2; slices <= most && columns >= 2 * chunk * slices; slices *= 2) {
    if (time(slices) < time(best)) best = slices;
  }
  return best;
}

void Product::add(const LinearSpec& linear) {
  int part = 0;
  while (parts[part].weight != nullptr) ++part;
  parts[part] = {linear.weight, linear.stride, linear.bias, static_cast<int>(linear.rows)};
  rows += static_cast<int>(linear.rows);
  columns = static_cast<int>(linear.columns);
}

void run_product(const Queue& queue, DType dtype, Output output, Product p, int processors,
                 TilePlan plan) {
  const bool tiles = dtype != DType::f32 && p.batch > 4;
  const int whole = p.batch, most = tiles ? kTileBatch : 4;
  const std::int64_t x_step = static_cast<std::int64_t>(most) * p.columns * size_of(dtype);
  const std::int64_t y_item = output == Output::floats ? 4 : size_of(dtype);
  const int outputs = output == Output::gated ? p.parts[0].rows : p.rows;
  p.y_stride = outputs;
  for (int first = 0; first < whole; first += most) {
    p.batch = std::min(most, whole - first);
    if (tiles) {
      run_tile_product(queue, dtype, output, p, processors, plan);
    } else {
      run_matvec(queue, dtype, output, p, processors);
    }
    p.x = static_cast<const unsigned char*>(p.x) + x_step;
    p.y = static_cast<unsigned char*>(p.y) + static_cast<std::int64_t>(most) * outputs * y_item;
  }
}

}  // namespace dive::cuda
