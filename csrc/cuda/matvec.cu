// y[b] = weight x[b] + bias for up to four vectors: a pair of weight rows per warp, or several
// warps with a slice of the columns each.
#include "cuda/linear.cuh"

namespace dive::cuda {
namespace {

constexpr int kChunk = 8 * kWarp;  // columns that a warp reads at once

template <class T>
constexpr int kChunksAhead = sizeof(T) == 2 ? 4 : 2;  // whose loads are in flight

template <class T, int kBatch, Output kOutput>
__global__ void __launch_bounds__(kProductWarps* kWarp) matvec(const Product p) {
  constexpr int kAhead = kChunksAhead<T>;
  DIVE_SHARED(shared);
  float* const partial = reinterpret_cast<float*>(shared);  // [warps][2][kBatch]
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int slice = warp % p.slices;
  const int pair = blockIdx.x * (kProductWarps / p.slices) + warp / p.slices;
  const int first = kOutput == Output::gated ? pair : 2 * pair;
  const int second = kOutput == Output::gated ? p.parts[0].rows + pair : first + 1;
  const WeightRow<T> rows[2] = {{p, first}, {p, second}};

  const int step = p.slices * kChunk;
  int column = slice * kChunk + 8 * lane;
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

  float sums[2][kBatch] = {};
  for (; column < p.columns; column += kAhead * step) {
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int at = column + a * step;
      float weights[2][8];
      unpack(ahead[a][0], weights[0]);
      unpack(ahead[a][1], weights[1]);
      load(a, at + kAhead * step);
      if (at >= p.columns) continue;
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int vector = b < p.batch ? b : 0;
        float x[8];
        unpack(load_eight(static_cast<const T*>(p.x) +
                          static_cast<std::int64_t>(vector) * p.columns + at),
               x);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          sums[0][b] = fmaf(weights[0][i], x[i], sums[0][b]);
          sums[1][b] = fmaf(weights[1][i], x[i], sums[1][b]);
        }
      }
    }
  }
#pragma unroll
  for (int b = 0; b < kBatch; ++b) {
    sums[0][b] = warp_sum(sums[0][b]);
    sums[1][b] = warp_sum(sums[1][b]);
  }
  if (p.slices > 1) {
    if (lane == 0) {
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        partial[(warp * 2 + 0) * kBatch + b] = sums[0][b];
        partial[(warp * 2 + 1) * kBatch + b] = sums[1][b];
      }
    }
    __syncthreads();
    if (slice != 0) return;
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      for (int s = 1; s < p.slices; ++s) {
        sums[0][b] += partial[((warp + s) * 2 + 0) * kBatch + b];
        sums[1][b] += partial[((warp + s) * 2 + 1) * kBatch + b];
      }
    }
  }
#pragma unroll
  for (int b = 0; b < kBatch; ++b) {
    if (lane == b) {
      store_pair<T, kOutput>(p, b, first, second, sums[0][b] + rows[0].bias,
                             sums[1][b] + rows[1].bias);
    }
  }
}

template <class T, Output kOutput>
void run(const Queue& queue, Product p, int processors) {
  const int pairs = kOutput == Output::gated ? p.parts[0].rows : (p.rows + 1) / 2;
  constexpr int kBytes = 2 * kChunksAhead<T> * kChunk * sizeof(T);
  p.slices = slices_for(pairs, p.columns, 2 * kChunk, kBytes, processors, kProductWarps);
  const int groups = kProductWarps / p.slices;
  Shape shape;
  shape.grid = dim3(static_cast<unsigned>((pairs + groups - 1) / groups));
  shape.threads = kProductWarps * kWarp;
  shape.shared = kProductWarps * 2 * 4 * sizeof(float);
  if (p.batch == 1) {
    launch(queue, shape, matvec<T, 1, kOutput>, p);
  } else if (p.batch == 2) {
    launch(queue, shape, matvec<T, 2, kOutput>, p);
  } else {
    launch(queue, shape, matvec<T, 4, kOutput>, p);
  }
}

template <class T>
void run(const Queue& queue, Output output, const Product& p, int processors) {
  switch (output) {
    case Output::floats: return run<T, Output::floats>(queue, p, processors);
    case Output::model: return run<T, Output::model>(queue, p, processors);
    case Output::gated: return run<T, Output::gated>(queue, p, processors);
  }
}

}  // namespace

void run_matvec(const Queue& queue, DType dtype, Output output, Product p, int processors) {
  switch (dtype) {
    case DType::f32: return run<float>(queue, output, p, processors);
    case DType::bf16: return run<BFloat16>(queue, output, p, processors);
    case DType::f16: return run<Half>(queue, output, p, processors);
  }
}

}  // namespace dive::cuda
