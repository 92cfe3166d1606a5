// y[b] = weight x[b] + bias for 5 to 64 vectors on tensor cores: 16 weight rows, or 32 for more
// than 8 vectors, are the rows of a warp's tiles, eight vectors each of its kTiles parts are the
// columns.
//
// A product of tiles may sum the columns of the weights in any order, as long as x has the same. So
// lane 4 g + t, which owns the columns 2t, 2t + 1, 2t + 8 and 2t + 9 of two tiles of 16, takes for
// them the 8 consecutive numbers from 8 t on: one load of 16 bytes, and four lanes read 64 bytes in
// a row.
#include "cuda/linear.cuh"

namespace dive::cuda {
namespace {

constexpr int kChunk = 32;  // columns that a warp reads of its rows at once

// Outputs of a tile of 16 rows.
template <Output kOutput>
constexpr int kTileOutputs = kOutput == Output::gated ? 8 : 16;

// Chunks per warp whose loads are in flight.
template <int kTiles, bool kShort>
constexpr int kChunksAhead = kTiles == 8 || kShort ? 2 : 4;

constexpr int kSmallWarps = 4;  // of a small block
// Of a kernel with short loads ahead, which exists for 9 to 32 vectors.
template <int kTiles>
constexpr bool kHasShort = kTiles == 2 || kTiles == 4;

// kRowTiles: tiles of 16 rows per warp, which share the loads of x: for 32 vectors and one tile
// that is twice the weights, and more than L2 delivers while memory is read at its full rate. The
// launch bounds name no least number of blocks: ptxas then spills without need. kShort:
// half of the loads in flight, so that three small blocks fit and not two.
template <class T, int kRowTiles, int kTiles, bool kShort, Output kOutput>
__global__ void __launch_bounds__((kShort ? kSmallWarps : kProductWarps) * kWarp)
    tile_product(const Product p) {
  constexpr int kAhead = kChunksAhead<kTiles, kShort>;
  DIVE_SHARED(shared);
  float* const partial = reinterpret_cast<float*>(shared);  // [warps][4 kTiles][lanes]
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int g = lane / 4, t = lane % 4;
  const int slice = warp % p.slices;
  const int groups = static_cast<int>(blockDim.x) / kWarp / p.slices;
  const int tile = (blockIdx.x * groups + warp / p.slices) * kRowTiles;
  // rows g and g + 8 of a tile; of gate and up, one row each
  const auto first_row = [&](int m) { return kTileOutputs<kOutput> * (tile + m) + g; };
  const auto second_row = [&](int m) {
    const int first = first_row(m);
    if (kOutput != Output::gated) return first + 8;
    return first < p.parts[0].rows ? p.parts[0].rows + first : p.rows;
  };
  const T* weights[kRowTiles][2];
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
    weights[m][0] = WeightRow<T>(p, first_row(m)).weight;
    weights[m][1] = WeightRow<T>(p, second_row(m)).weight;
  }

  const int step = p.slices * kChunk;
  int column = slice * kChunk + 8 * t;
  Eight<T> ahead[kAhead][kRowTiles][2];
  const auto load = [&](int a, int at) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        ahead[a][m][r] = at < p.columns ? load_eight_weights(weights[m][r] + at) : Eight<T>{};
      }
    }
  };
#pragma unroll
  for (int a = 0; a < kAhead; ++a) load(a, column + a * step);
  let_next_start();
  wait_for_previous();

  float sums[kRowTiles][kTiles][4] = {};
  // all lanes of a warp take part in each product, those past the last column with zeros
  for (int base = slice * kChunk; base < p.columns; base += kAhead * step) {
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int at = column + a * step;
      std::uint32_t even_weights[kRowTiles][4], odd_weights[kRowTiles][4];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        const uint4 low = ahead[a][m][0].words[0], high = ahead[a][m][1].words[0];
        even_weights[m][0] = low.x;
        even_weights[m][1] = high.x;
        even_weights[m][2] = low.y;
        even_weights[m][3] = high.y;
        odd_weights[m][0] = low.z;
        odd_weights[m][1] = high.z;
        odd_weights[m][2] = low.w;
        odd_weights[m][3] = high.w;
      }
      load(a, at + kAhead * step);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const int b = 8 * n + g;
        Eight<T> x{};
        if (at < p.columns && b < p.batch) {
          x = load_eight(static_cast<const T*>(p.x) + static_cast<std::int64_t>(b) * p.columns +
                         at);
        }
        const std::uint32_t even[2] = {x.words[0].x, x.words[0].y};
        const std::uint32_t odd[2] = {x.words[0].z, x.words[0].w};
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          mma_16816<T>(sums[m][n], even_weights[m], even);
          mma_16816<T>(sums[m][n], odd_weights[m], odd);
        }
      }
    }
    column += kAhead * step;
  }
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
    if (p.slices > 1) {
      if (m > 0) __syncthreads();  // the tile before has been read
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          partial[(warp * 4 * kTiles + 4 * n + i) * kWarp + lane] = sums[m][n][i];
        }
      }
      __syncthreads();
      for (int s = 1; s < p.slices && slice == 0; ++s) {
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            sums[m][n][i] += partial[((warp + s) * 4 * kTiles + 4 * n + i) * kWarp + lane];
          }
        }
      }
    }
    if (slice != 0) continue;
    const int first = first_row(m), second = second_row(m);
    const float bias = WeightRow<T>(p, first).bias, other_bias = WeightRow<T>(p, second).bias;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {  // this lane's two columns of the tile
        store_pair<T, kOutput>(p, 8 * n + 2 * t + i, first, second, sums[m][n][i] + bias,
                               sums[m][n][2 + i] + other_bias);
      }
    }
  }
}

template <class T, int kRowTiles, int kTiles, bool kShort, Output kOutput>
void run(const Queue& queue, Product p, int processors, TilePlan plan) {
  const int outputs = kOutput == Output::gated ? p.parts[0].rows : p.rows;
  const int rows = kTileOutputs<kOutput> * kRowTiles, tiles = (outputs + rows - 1) / rows;
  constexpr int kBytes = kRowTiles * 16 * kChunksAhead<kTiles, kShort> * kChunk * sizeof(T);
  const bool small = plan == TilePlan::small || plan == TilePlan::small_short;
  const int warps = small ? kSmallWarps : kProductWarps;
  // a block of these registers has a multiprocessor to itself, but for one tile
  const int concurrent = kTiles == 1 ? 2 * processors : processors;
  p.slices = plan == TilePlan::waves
                 ? slices_by_waves(tiles, p.columns, 2 * kChunk, concurrent, warps)
                 : slices_for(tiles, p.columns, 2 * kChunk, kBytes, processors, warps);
  const int groups = warps / p.slices;
  Shape shape;
  shape.grid = dim3(static_cast<unsigned>((tiles + groups - 1) / groups));
  shape.threads = warps * kWarp;
  shape.shared = p.slices > 1 ? warps * 4 * kTiles * kWarp * sizeof(float) : 0;
  launch(queue, shape, tile_product<T, kRowTiles, kTiles, kShort, kOutput>, p);
}

template <class T, int kRowTiles, int kTiles, Output kOutput>
void run(const Queue& queue, const Product& p, int processors, TilePlan plan) {
  if constexpr (kHasShort<kTiles>) {
    if (plan == TilePlan::small_short) {
      return run<T, kRowTiles, kTiles, true, kOutput>(queue, p, processors, plan);
    }
  }
  run<T, kRowTiles, kTiles, false, kOutput>(queue, p, processors, plan);
}

template <class T, Output kOutput>
void run(const Queue& queue, const Product& p, int processors, TilePlan plan) {
  if (p.batch <= 8) return run<T, 1, 1, kOutput>(queue, p, processors, plan);
  if (p.batch <= 16) return run<T, 2, 2, kOutput>(queue, p, processors, plan);
  if (p.batch <= 32) return run<T, 2, 4, kOutput>(queue, p, processors, plan);
  run<T, 2, 8, kOutput>(queue, p, processors, plan);
}

template <class T>
void run(const Queue& queue, Output output, const Product& p, int processors, TilePlan plan) {
  switch (output) {
    case Output::floats: return run<T, Output::floats>(queue, p, processors, plan);
    case Output::model: return run<T, Output::model>(queue, p, processors, plan);
    case Output::gated: return run<T, Output::gated>(queue, p, processors, plan);
  }
}

}  // namespace

void run_tile_product(const Queue& queue, DType dtype, Output output, Product p, int processors,
                      TilePlan plan) {
  if (dtype == DType::bf16) return run<BFloat16>(queue, output, p, processors, plan);
  run<Half>(queue, output, p, processors, plan);
}

}  // namespace dive::cuda
