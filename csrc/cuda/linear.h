// Products of weights with the vectors of a step: y[b] = weight x[b] + bias.
//
// Up to four vectors: a warp reads one pair of weight rows front to back and multiplies in float32
// (matvec.cu). More, up to 64: tensor cores, with 16 weight rows as the tile's rows and the vectors
// as its columns (tile_product.cu). Both stream the weights: each is read once, from memory to
// registers, and the first loads are issued before the wait for the kernel that writes x.
#pragma once

#include <cstdint>

#include "cuda/runtime.h"
#include "decoder.h"

namespace dive::cuda {

enum class Output {
  floats,  // float32 [batch, rows]
  model,   // rounded to the model's dtype [batch, rows]
  gated    // of two parts, gate and up: round(act(gate) * up) [batch, rows of one]
};

struct Product {
  // Matrices with the same x, whose outputs follow one another.
  struct Part {
    const void* weight = nullptr;
    std::int64_t stride = 0;
    const void* bias = nullptr;
    int rows = 0;
  };
  Part parts[3];
  int rows = 0;  // of all parts
  int columns = 0;
  const void* x = nullptr;  // of the model's dtype, [batch, columns]
  int batch = 0;
  void* y = nullptr;
  int y_stride = 0;
  int slices = 1;  // warps that share a row's columns, see slices_for
  Gate gate = Gate::silu;

  void add(const LinearSpec& linear);
};

// Any batch. `processors` is the device's number of multiprocessors.
void run_product(const Queue& queue, DType dtype, Output output, Product product, int processors,
                 TilePlan plan);

// The two kinds: for a batch up to 4, and up to 64 of a 16-bit dtype.
void run_matvec(const Queue& queue, DType dtype, Output output, Product product, int processors);
void run_tile_product(const Queue& queue, DType dtype, Output output, Product product,
                      int processors, TilePlan plan);

// Warps that share a row's columns, a power of two up to `most`: enough that the loads of all
// `warps` times these cover the memory's latency. `chunk` columns are read at once, with `bytes`
// per warp in flight.
int slices_for(int warps, int columns, int chunk, int bytes, int processors, int most);

// The same, so that blocks of `most` warps, `concurrent` of them at a time, end with the fewest
// idle.
int slices_by_waves(int warps, int columns, int chunk, int concurrent, int most);

}  // namespace dive::cuda
