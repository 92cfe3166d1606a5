// The kernels without Python, for builds with the sanitizers: every path this machine can run over
// odd sizes, each buffer exactly as large as it must be so that a stray access is caught, and
// compared with the formula in double.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "cpu/kernels.h"

namespace {

using namespace dive;
using namespace dive::cpu;

std::mt19937 generator(7);

template <class T>
std::vector<T> normal(std::int64_t count, float deviation) {
  std::normal_distribution<float> draw(0.0f, deviation);
  std::vector<T> values(static_cast<std::size_t>(count));
  for (T& value : values) value = from_float<T>(draw(generator));
  return values;
}

double phi(Activation activation, double x) {
  switch (activation) {
    case Activation::silu: return x / (1 + std::exp(-x));
    case Activation::gelu: return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case Activation::tanh: return std::tanh(x);
    case Activation::identity: break;
  }
  return x;
}

int failures = 0;

template <class T>
void check(Isa isa, std::int64_t width, std::int64_t rank, Activation activation, bool preserving,
           bool plus_one, double bound) {
  const std::int64_t rows = 3;
  auto residual = normal<T>(rows * width, 1.0f);
  const auto delta = normal<T>(rows * width, 1.0f);
  const auto down = normal<T>(rank * width, 1.0f / std::sqrt(static_cast<float>(width)));
  const auto bias = normal<float>(rank, 1.0f), fixed = normal<float>(width, 1.0f);
  const auto up = normal<T>(width * rank, 0.3f);
  const auto gain = normal<T>(width, 1.0f);
  std::vector<T> out(static_cast<std::size_t>(rows * width));
  const auto before = residual;

  SteeringSource source;
  source.rank = rank;
  source.width = width;
  source.dtype = dtype_of<T>::value;
  source.down = {down.data(), width, 1};
  source.down_bias = bias.data();
  source.up = {up.data(), rank, 1};
  source.fixed = fixed.data();
  source.scale = 0.3f;
  source.eps = 1e-6f;
  source.activation = activation;
  source.norm_preserving = preserving;
  const PackedSteering steering(source);
  const PackedSteering* const each[] = {&steering, nullptr,
                                        &steering};  // the middle row is skipped

  StepArguments step;
  step.rows = rows;
  step.width = width;
  step.residual = residual.data();
  step.residual_stride = width;
  step.delta = delta.data();
  step.delta_stride = width;
  step.steerings = each;
  step.out = out.data();
  step.out_stride = width;
  step.norm_weight = gain.data();
  step.norm_dtype = dtype_of<T>::value;
  step.norm_eps = 1e-5f;
  step.norm_plus_one = plus_one;
  Workspace workspace;
  kernels_of(isa, dtype_of<T>::value).step(step, workspace);

  double error = 0, size = 0;
  for (std::int64_t b = 0; b < rows; ++b) {
    const auto at = [&](std::int64_t i) { return static_cast<std::size_t>(b * width + i); };
    std::vector<double> r(static_cast<std::size_t>(width));
    double squares = 0, after = 0;
    for (std::int64_t i = 0; i < width; ++i) {
      // as the stream stores it, before the edit
      r[i] = to_float(from_float<T>(to_float(before[at(i)]) + to_float(delta[at(i)])));
      squares += r[i] * r[i];
    }
    if (each[b] != nullptr) {
      std::vector<double> z(static_cast<std::size_t>(rank));
      for (std::int64_t k = 0; k < rank; ++k) {
        for (std::int64_t i = 0; i < width; ++i) z[k] += to_float(down[k * width + i]) * r[i];
        z[k] = phi(activation, z[k] / std::sqrt(squares / width + 1e-6) + bias[k]);
      }
      for (std::int64_t i = 0; i < width; ++i) {
        double edit = fixed[i];
        for (std::int64_t k = 0; k < rank; ++k) edit += z[k] * to_float(up[i * rank + k]);
        r[i] += 0.3f * edit;
        after += r[i] * r[i];
      }
      if (preserving) {
        for (double& x : r) x *= std::sqrt(squares / after);
        after = squares;
      }
    } else {
      after = squares;
    }
    for (std::int64_t i = 0; i < width; ++i) {
      const double w = to_float(gain[i]);
      const double y = r[i] / std::sqrt(after / width + 1e-5) * (plus_one ? 1 + w : w);
      const double d = to_float(residual[at(i)]) - r[i], e = to_float(out[at(i)]) - y;
      error += d * d + e * e;
      size += r[i] * r[i] + y * y;
    }
  }
  if (!(std::sqrt(error / size) < bound)) {
    std::printf("%s width %ld rank %ld: relative error %g, want < %g\n", name_of(isa),
                static_cast<long>(width), static_cast<long>(rank), std::sqrt(error / size), bound);
    ++failures;
  }
}

}  // namespace

int main() {
  int cases = 0;
  for (const Isa isa : usable_isas()) {
    for (const std::int64_t width : {1, 15, 16, 17, 63, 64, 65, 200, 1027}) {
      for (const std::int64_t rank : {0, 1, 4, 5, 16, 128}) {
        for (const Activation activation :
             {Activation::silu, Activation::gelu, Activation::tanh, Activation::identity}) {
          for (int flags = 0; flags < 4; ++flags) {
            const bool preserving = (flags & 1) != 0, plus_one = (flags & 2) != 0;
            check<float>(isa, width, rank, activation, preserving, plus_one, 1e-4);
            check<BFloat16>(isa, width, rank, activation, preserving, plus_one, 2e-2);
            cases += 2;
          }
        }
      }
    }
  }
  std::printf("%d cases, %d failures\n", cases, failures);
  return failures == 0 ? 0 : 1;
}
