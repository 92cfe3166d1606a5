// y[b] = weight x[b] + bias for 5 to 64 vectors on tensor cores: 16 weight rows a warp are the rows
// of the tile, eight vectors each of its kTiles parts are the columns.
//
// A product of tiles does not mind in which order the columns of the weights are summed, as long as
// x has the same. So lane 4 g + t, which owns the columns 2t, 2t + 1, 2t + 8 and 2t + 9 of two
// tiles of 16, takes for them the 8 consecutive numbers from 8 t on: one load of 16 bytes, and four
// lanes read 64 bytes in a row.
#include "cuda/product.cuh"

namespace dive::cuda {
namespace {

constexpr int kChunk = 32;  // columns that a warp reads of its 16 rows at once
constexpr int kAhead = 4;   // chunks whose loads are under way

template <class T, int kTiles, Output kOutput>
__global__ void __launch_bounds__(kProductWarps* kWarp, 1) tile_product(const Product p) {
  DIVE_SHARED(shared);
  float* const partial = reinterpret_cast<float*>(shared);  // [warps][4 kTiles][lanes]
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int g = lane / 4, t = lane % 4;
  const int slice = warp % p.slices;
  const int tile = blockIdx.x * (kProductWarps / p.slices) + warp / p.slices;
  // rows g and g + 8 of the tile; of gate and up, one row each
  const int first = kOutput == Output::gated ? 8 * tile + g : 16 * tile + g;
  int second = first + 8;
  if constexpr (kOutput == Output::gated) {
    second = first < p.parts[0].rows ? p.parts[0].rows + first : p.rows;
  }
  const WeightRow<T> rows[2] = {{p, first}, {p, second}};

  const int step = p.slices * kChunk;
  int column = slice * kChunk + 8 * t;
  Eight<T> ahead[kAhead][2];
  const auto load = [&](int a, int at) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      ahead[a][r] = at < p.columns ? load_eight_weights(rows[r].weight + at) : Eight<T>{};
    }
  };
#pragma unroll
  for (int a = 0; a < kAhead; ++a) load(a, column + a * step);
  let_next_start();
  wait_for_previous();

  float sums[kTiles][4] = {};
  // all lanes of a warp take part in each product, those past the last column with zeros
  for (int base = slice * kChunk; base < p.columns; base += kAhead * step) {
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int at = column + a * step;
      const Eight<T> low = ahead[a][0], high = ahead[a][1];
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
        const std::uint32_t even_weights[4] = {low.words[0].x, high.words[0].x, low.words[0].y,
                                               high.words[0].y};
        const std::uint32_t odd_weights[4] = {low.words[0].z, high.words[0].z, low.words[0].w,
                                              high.words[0].w};
        mma_16816<T>(sums[n], even_weights, even);
        mma_16816<T>(sums[n], odd_weights, odd);
      }
    }
    column += kAhead * step;
  }
  if (p.slices > 1) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        partial[(warp * 4 * kTiles + 4 * n + i) * kWarp + lane] = sums[n][i];
      }
    }
    __syncthreads();
    if (slice != 0) return;
    for (int s = 1; s < p.slices; ++s) {
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          sums[n][i] += partial[((warp + s) * 4 * kTiles + 4 * n + i) * kWarp + lane];
        }
      }
    }
  }
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {  // this lane's two columns of the tile
      store_pair<T, kOutput>(p, 8 * n + 2 * t + i, first, second, sums[n][i] + rows[0].bias,
                             sums[n][2 + i] + rows[1].bias);
    }
  }
}

template <class T, int kTiles, Output kOutput>
void run(const Queue& queue, const Product& p) {
  const int outputs = kOutput == Output::gated ? p.parts[0].rows : p.rows;
  const int rows = kOutput == Output::gated ? 8 : 16;
  const int tiles = (outputs + rows - 1) / rows, groups = kProductWarps / p.slices;
  Shape shape;
  shape.grid = dim3(static_cast<unsigned>((tiles + groups - 1) / groups));
  shape.threads = kProductWarps * kWarp;
  shape.shared = p.slices > 1 ? kProductWarps * 4 * kTiles * kWarp * sizeof(float) : 0;
  launch(queue, shape, tile_product<T, kTiles, kOutput>, p);
}

template <class T, Output kOutput>
void run(const Queue& queue, const Product& p) {
  if (p.batch <= 8) return run<T, 1, kOutput>(queue, p);
  if (p.batch <= 16) return run<T, 2, kOutput>(queue, p);
  if (p.batch <= 32) return run<T, 4, kOutput>(queue, p);
  run<T, 8, kOutput>(queue, p);
}

template <class T>
void run(const Queue& queue, Output output, const Product& p) {
  switch (output) {
    case Output::floats: return run<T, Output::floats>(queue, p);
    case Output::model: return run<T, Output::model>(queue, p);
    case Output::gated: return run<T, Output::gated>(queue, p);
  }
}

}  // namespace

void run_tile_product(const Queue& queue, DType dtype, Output output, const Product& p) {
  if (dtype == DType::bf16) return run<BFloat16>(queue, output, p);
  run<Half>(queue, output, p);
}

}  // namespace dive::cuda
