// The host build itself: what it computes, and that it finds each mistake that it is there to find.
#include <algorithm>
#include <cstdio>
#include <random>
#include <vector>

#include "cuda/runtime.h"

namespace {

using namespace dive;
using namespace dive::cuda;
using host::Order;

int failures = 0;

void expect(bool holds, const char* what) {
  if (holds) return;
  std::printf("not so: %s\n", what);
  ++failures;
}

template <class F>
void expect_fault(const F& work, const char* part, const char* what) {
  try {
    work();
    std::printf("no error: %s\n", what);
    ++failures;
  } catch (const std::exception& error) {
    if (std::string(error.what()).find(part) != std::string::npos) return;
    std::printf("%s: '%s' lacks '%s'\n", what, error.what(), part);
    ++failures;
  }
}

// Each order of the fibers, so that what depends on it shows.
template <class F>
void in_every_order(const F& work) {
  for (const Order order : {Order::forward, Order::backward, Order::shuffled}) {
    for (std::uint32_t seed = 0; seed < (order == Order::shuffled ? 5u : 1u); ++seed) {
      host::settings().order = order;
      host::settings().seed = seed;
      work();
    }
  }
  host::settings().order = Order::forward;
}

Shape shape(unsigned blocks, unsigned threads, std::size_t shared = 0, unsigned cluster = 1) {
  Shape s;
  s.grid = dim3(blocks);
  s.threads = threads;
  s.shared = shared;
  s.cluster = cluster;
  return s;
}

// The sum of a block's share, by shuffles, then over the warps' sums in shared memory.
template <bool kBarrier>
__global__ void block_sum(const float* values, float* sums, int count) {
  DIVE_SHARED(shared);
  float* const partial = reinterpret_cast<float*>(shared);
  wait_for_previous();
  float sum = 0;
  for (unsigned i = threadIdx.x; i < static_cast<unsigned>(count); i += blockDim.x) {
    sum += values[blockIdx.x * static_cast<unsigned>(count) + i];
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  if (kBarrier) __syncthreads();
  if (threadIdx.x == 0) {
    float total = 0;
    for (unsigned w = 0; w < blockDim.x / 32; ++w) total += partial[w];
    sums[blockIdx.x] = total;
  }
}

void test_reduction() {
  std::vector<float> values(3 * 300), sums(3);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 7);
  in_every_order([&] {
    launch({}, shape(3, 128, 16), block_sum<true>, values.data(), sums.data(), 300);
    for (int b = 0; b < 3; ++b) {
      float want = 0;
      for (int i = 0; i < 300; ++i) want += values[static_cast<std::size_t>(300 * b + i)];
      expect(sums[static_cast<std::size_t>(b)] == want, "a block's sum");
    }
  });
  // without its barrier the first warp reads what is not yet there
  bool differs = false;
  in_every_order([&] {
    launch({}, shape(1, 128, 16), block_sum<false>, values.data(), sums.data(), 300);
    const float first = sums[0];
    launch({}, shape(1, 128, 16), block_sum<true>, values.data(), sums.data(), 300);
    differs = differs || !(first == sums[0]);
  });
  expect(differs, "a missing barrier changes the result in some order");
}

// Each block reads the number of the next one of its cluster from the shared memory of that block.
template <bool kEnd>
__global__ void exchange(float* received, unsigned blocks) {
  DIVE_SHARED(shared);
  float* const number = reinterpret_cast<float*>(shared);
  wait_for_previous();
  if (threadIdx.x == 0) number[0] = 10.0f + static_cast<float>(blockIdx.x);
  cluster_sync();
  const unsigned from = (cluster_rank() + 1) % blocks;
  if (threadIdx.x == 0) received[blockIdx.x] = *shared_of_block(number, from);
  if (kEnd) cluster_sync();
}

void test_cluster() {
  in_every_order([] {
    std::vector<float> received(8, -1.0f);
    launch({}, shape(8, 32, 4, 4), exchange<true>, received.data(), 4u);
    expect(received == std::vector<float>({11, 12, 13, 10, 15, 16, 17, 14}),
           "the neighbour's number");
    launch({}, shape(8, 32, 4), exchange<true>, received.data(), 1u);
    expect(received[5] == 15.0f, "a block alone is its own neighbour");
  });
  std::vector<float> received(2, -1.0f);
  launch({}, shape(2, 32, 4, 2), exchange<false>, received.data(), 2u);
  expect(std::isnan(received[1]), "a block that left has no shared memory any more");
}

// The last block to come, whichever it is, finds what all have written.
__global__ void sum_by_last(float* parts, unsigned* counter, float* sum) {
  DIVE_SHARED(shared);
  unsigned* const before = reinterpret_cast<unsigned*>(shared);
  wait_for_previous();
  parts[blockIdx.x * blockDim.x + threadIdx.x] = static_cast<float>(blockIdx.x + threadIdx.x);
  __syncthreads();
  if (threadIdx.x == 0) *before = count_arrival(counter);
  __syncthreads();
  if (*before + 1 != gridDim.x || threadIdx.x != 0) return;
  for (unsigned i = 0; i < gridDim.x * blockDim.x; ++i) *sum += parts[i];
}

void test_arrivals() {
  in_every_order([] {
    std::vector<float> parts(3 * 64, -1.0f);
    unsigned counter = 0;
    float sum = 0;
    launch({}, shape(3, 64, 4), sum_by_last, parts.data(), &counter, &sum);
    expect(counter == 3 && sum == 3 * 2016 + 64 * 3, "what the last of three blocks adds up");
  });
}

// Each block writes its number into the shared memory of the next one.
template <bool kBegin>
__global__ void write_next(float* received, unsigned blocks) {
  DIVE_SHARED(shared);
  float* const number = reinterpret_cast<float*>(shared);
  if (kBegin) cluster_arrive();
  const unsigned to = (cluster_rank() + 1) % blocks;
  if (kBegin) cluster_wait();
  if (threadIdx.x == 0) *shared_of_block(number, to) = 10.0f + static_cast<float>(blockIdx.x);
  wait_for_previous();
  cluster_sync();
  if (threadIdx.x == 0) received[blockIdx.x] = number[0];
}

void test_cluster_in_halves() {
  std::vector<float> received(8);
  in_every_order([&] {
    received.assign(8, -1.0f);
    launch({}, shape(8, 32, 4, 4), write_next<true>, received.data(), 4u);
    expect(received == std::vector<float>({13, 10, 11, 12, 17, 14, 15, 16}),
           "the neighbour's number");
  });
  // written before the block began: lost
  launch({}, shape(8, 32, 4, 4), write_next<false>, received.data(), 4u);
  expect(std::isnan(received[1]), "a block that has not begun has no shared memory yet");
}

// Four numbers through shared memory, read too early or in time.
template <bool kWait>
__global__ void copy_four(const float* from, float* to) {
  DIVE_SHARED(shared);
  float* const four = reinterpret_cast<float*>(shared);
  if (threadIdx.x == 0) copy_to_shared<16>(four, from);
  wait_for_previous();
  if (kWait) copies_done();
  __syncthreads();
  if (threadIdx.x < 4) to[threadIdx.x] = four[threadIdx.x];
}

void test_copies() {
  in_every_order([] {
    alignas(16) const float from[4] = {1, 2, 3, 4};
    std::vector<float> to(4);
    launch({}, shape(1, 32, 16), copy_four<true>, from, to.data());
    expect(to == std::vector<float>({1, 2, 3, 4}), "a copy into shared memory");
    launch({}, shape(1, 32, 16), copy_four<false>, from, to.data());
    expect(std::isnan(to[2]), "a copy that nobody waited for is not there");
  });
}

template <class T>
__global__ void one_tile(const T* a, const T* b, float* d) {
  wait_for_previous();
  const int g = static_cast<int>(threadIdx.x) / 4, t = static_cast<int>(threadIdx.x) % 4;
  const auto pair = [](T low, T high) {
    return static_cast<std::uint32_t>(low.bits) | static_cast<std::uint32_t>(high.bits) << 16;
  };
  std::uint32_t as[4], bs[2];
  for (int i = 0; i < 4; ++i) {
    const T* const at = a + (g + 8 * (i % 2)) * 16 + 2 * t + 8 * (i / 2);
    as[i] = pair(at[0], at[1]);
  }
  for (int i = 0; i < 2; ++i) {
    const T* const at = b + (2 * t + 8 * i) * 8 + g;
    bs[i] = pair(at[0], at[8]);
  }
  float ds[4];
  for (int i = 0; i < 4; ++i) ds[i] = d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2];
  mma_16816<T>(ds, as, bs);
  for (int i = 0; i < 4; ++i) d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = ds[i];
}

template <class T>
void test_mma() {
  std::mt19937 random(3);
  std::vector<T> a(16 * 16), b(16 * 8);
  std::vector<float> d(16 * 8), want;
  const auto draw = [&] { return static_cast<float>(random() % 17) / 4 - 2; };  // exact in both
  for (T& x : a) x = from_float<T>(draw());
  for (T& x : b) x = from_float<T>(draw());
  for (float& x : d) x = draw();
  want = d;
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      for (int k = 0; k < 16; ++k) {
        want[static_cast<std::size_t>(i * 8 + j)] +=
            to_float(a[static_cast<std::size_t>(i * 16 + k)]) *
            to_float(b[static_cast<std::size_t>(k * 8 + j)]);
      }
    }
  }
  launch({}, shape(1, 32), one_tile<T>, a.data(), b.data(), d.data());
  expect(d == want, "a product of tiles");
}

__global__ void lanes(int* out) {
  wait_for_previous();
  const int lane = static_cast<int>(threadIdx.x);
  out[lane] = __shfl_sync(kFullWarp, lane, 3, 8);
  out[32 + lane] = __shfl_xor_sync(kFullWarp, lane, 1);
  out[64 + lane] = __shfl_down_sync(kFullWarp, lane, 2, 16);
  out[96 + lane] = __any_sync(kFullWarp, lane == 31);
  // two halves that do not wait for each other
  if (lane < 16) {
    out[128 + lane] = static_cast<int>(__ballot_sync(0xffffu, lane % 2));
  } else {
    out[128 + lane] = __shfl_xor_sync(0xffff0000u, lane, 8, 16);
  }
}

void test_lanes() {
  in_every_order([] {
    std::vector<int> out(160);
    launch({}, shape(1, 32), lanes, out.data());
    for (int i = 0; i < 32; ++i) {
      const auto at = [&](int row) { return out[static_cast<std::size_t>(32 * row + i)]; };
      expect(at(0) == i / 8 * 8 + 3, "shuffle within eight lanes");
      expect(at(1) == (i ^ 1), "shuffle to the neighbour");
      expect(at(2) == (i % 16 < 14 ? i + 2 : i), "shuffle down");
      expect(at(3) == 1, "any");
      expect(at(4) == (i < 16 ? 0xaaaa : i ^ 8), "halves of a warp");
    }
  });
}

__global__ void wrong(int which, float* data) {
  DIVE_SHARED(shared);
  if (which == 0) return;
  wait_for_previous();
  if (which == 1 && threadIdx.x == 7) return;
  if (which == 2 && threadIdx.x >= 64) __syncwarp();
  if (which == 2 && threadIdx.x < 64) __syncthreads();
  if (which == 3 && threadIdx.x != 5) __shfl_xor_sync(kFullWarp, 1.0f, 1);
  if (which == 4) __shfl_sync(0xffu << threadIdx.x % 32 / 8 * 8, 1, 31);
  if (which == 5) load_words(data + 1);
  if (which == 6) shared_of_block(reinterpret_cast<float*>(shared), 1);
  if (which == 7) (threadIdx.x < 64) ? __syncthreads() : cluster_sync();
  if (which == 8 && threadIdx.x < 64) {
    __syncthreads();
  } else if (which == 8) {
    __syncthreads();
  }
  if (which == 9) cluster_wait();
  for (int twice = 0; which == 10 && twice < 2; ++twice) cluster_arrive();
  if (which == 11) copy_to_shared<16>(shared, data + 1);
  if (which == 1) __syncthreads();
}

void test_mistakes() {
  std::vector<float> data(4);
  const auto run = [&](int which) {
    return [&data, which] { launch({}, shape(2, 96, 4), wrong, which, data.data()); };
  };
  in_every_order([&] {
    expect_fault(run(0), "without a call of wait_for_previous", "no wait");
    expect_fault(run(1), "but thread 7 of block", "a thread left before the barrier");
    expect_fault(run(2), "has left the kernel", "a barrier for some threads");
    expect_fault(run(3), "shuffle, line", "a shuffle without lane 5");
    expect_fault(run(4), "which its mask does not name", "a lane outside of the mask");
    expect_fault(run(5), "no multiple", "a load that is not aligned");
    expect_fault(run(6), "of a cluster of 1", "a block that the cluster lacks");
    expect_fault(run(7), "__syncthreads", "two kinds of barrier");
    expect_fault(run(9), "without an arrival", "the second half of a barrier alone");
    expect_fault(run(10), "barrier twice", "the first half of a barrier twice");
    expect_fault(run(11), "no multiple", "a copy that is not aligned");
    expect_fault(run(8), "where others wait at that of line", "two barriers at once");
  });
  expect_fault(run(0), "wrong(int, float*), block (0, 0, 0), thread 0 left", "the kernel's name");
  const auto sized = [](Shape s) {
    return [s] { launch({}, s, lanes, static_cast<int*>(nullptr)); };
  };
  expect_fault(sized(shape(0, 32)), "invalid configuration", "no block");
  expect_fault(sized(shape(1, 1056)), "invalid configuration", "too many threads");
  expect_fault(sized(shape(6, 32, 0, 4)), "invalid configuration", "clusters that do not fit");
  expect_fault(sized(shape(1, 32, 60000)), "invalid argument", "more shared memory than allowed");
  host::settings().capability = 80;
  expect_fault(sized(shape(4, 32, 0, 4)), "not supported", "clusters before sm_90");
  expect(cudaFuncSetAttribute(lanes, cudaFuncAttributeMaxDynamicSharedMemorySize, 200000) ==
             cudaErrorInvalidValue,
         "sm_80 has less shared memory");
  host::settings().capability = 90;
}

template <bool kEarly>
__global__ void add_one(const float* from, float* to, const int* where) {
  float early = 0;
  if (kEarly) early = from[*where];
  let_next_start();
  wait_for_previous();
  if (threadIdx.x == 0) to[*where] = (kEarly ? early : from[*where]) + 1.0f;
}

void test_graph() {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");
  const Queue queue{stream, true};
  Buffer<float> a(4, "a"), b(4, "b"), c(4, "c");
  Buffer<int> where(1, "where");
  const std::vector<float> start = {1, 2, 3, 4};
  const auto record = [&](auto* kernel) {
    return Graph::record(stream, [&, kernel] {
      const std::size_t bytes = 4 * sizeof(float);
      check(cudaMemcpyAsync(a.data(), start.data(), bytes, cudaMemcpyHostToDevice, stream), "copy");
      launch(queue, shape(1, 32), kernel, a.data(), b.data(), where.data());
      launch(queue, shape(1, 32), kernel, b.data(), c.data(), where.data());
      launch(queue, shape(1, 32), kernel, c.data(), a.data(), where.data());
    });
  };
  const auto read = [&](const Graph& graph, int index) {
    check(cudaMemcpy(where.data(), &index, sizeof index, cudaMemcpyHostToDevice), "copy");
    graph.run(stream);
    float value = 0;
    const float* const from = a.data() + index;
    check(cudaMemcpy(&value, from, sizeof value, cudaMemcpyDeviceToHost), "copy");
    return value;
  };
  in_every_order([&] {
    const std::size_t before = host::counts().launches;
    const Graph right = record(&add_one<false>);
    expect(host::counts().launches == before, "a capture runs nothing");
    expect(read(right, 1) == 5.0f && read(right, 3) == 7.0f, "replays read memory anew");
    expect(host::counts().launches == before + 6, "three kernels a replay");
  });
  // reads before the wait what the kernel before it writes
  const Graph early = record(&add_one<true>);
  expect(!(read(early, 2) == 6.0f), "a read before wait_for_previous gets old numbers");

  expect_fault([&] { Graph::record(stream, [&] { Buffer<float>(1, "more"); }); },
               "stream is capturing", "memory during a capture");
  const auto other = [&] {
    Graph::record(stream, [&] { check(cudaStreamSynchronize(stream), "a wait"); });
  };
  expect_fault(other, "not permitted when stream is capturing", "a wait during a capture");
  expect_fault([] { Graph::record(nullptr, [] {}); }, "begin of a capture", "the default stream");
  cudaStreamDestroy(stream);
}

void test_memory() {
  const host::Counts before = host::counts();
  {
    Buffer<float> buffer(100, "numbers");
    expect(std::isnan(buffer.data()[99]), "new memory is no number");
    expect(host::counts().bytes == before.bytes + 400, "bytes in use");
    std::vector<float> host(101);
    expect(cudaMemcpy(buffer.data(), host.data(), 404, cudaMemcpyHostToDevice) ==
               cudaErrorInvalidValue,
           "a copy past the end");
    expect(cudaMemcpy(buffer.data(), host.data(), 400, cudaMemcpyDeviceToHost) ==
               cudaErrorInvalidValue,
           "a copy the other way round");
    expect(cudaGetLastError() == cudaErrorInvalidValue && cudaGetLastError() == cudaSuccess,
           "the last error is reported once");
  }
  expect(host::counts().allocations == before.allocations, "all is freed");
  expect_fault([] { Buffer<float>(std::size_t{1} << 40, "a cache"); },
               "a cache needs 4194304 MiB on the GPU", "too much memory");
}

}  // namespace

int main() {
  test_reduction();
  test_cluster();
  test_arrivals();
  test_cluster_in_halves();
  test_copies();
  test_mma<BFloat16>();
  test_mma<Half>();
  test_lanes();
  test_mistakes();
  test_graph();
  test_memory();
  std::printf("host_cuda: %d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
