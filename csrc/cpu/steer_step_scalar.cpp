// Portable C++: runs anywhere, and is what the vector paths are compared with.
#include <cmath>
#include <cstring>
#include <type_traits>

#include "cpu/steer_step.h"

#define DIVE_TARGET

namespace dive::cpu::scalar {

constexpr int kChains = 1;

struct Vec {
  float lanes[16];

  template <class T>
  static Vec load(const T* from) {
    Vec v;
    for (int i = 0; i < 16; ++i) v.lanes[i] = to_float(from[i]);
    return v;
  }
  template <class T>
  void store(T* to) const {
    for (int i = 0; i < 16; ++i) to[i] = from_float<T>(lanes[i]);
  }
  static Vec splat(float value) {
    Vec v;
    for (float& lane : v.lanes) lane = value;
    return v;
  }
  template <class T>
  Vec rounded() const {
    Vec v;
    for (int i = 0; i < 16; ++i) v.lanes[i] = to_float(from_float<T>(lanes[i]));
    return v;
  }
  float sum() const {
    float half[8];
    for (int i = 0; i < 8; ++i) half[i] = lanes[i] + lanes[i + 8];
    return ((half[0] + half[4]) + (half[2] + half[6])) +
           ((half[1] + half[5]) + (half[3] + half[7]));
  }
};

inline Vec operator+(const Vec& a, const Vec& b) {
  Vec v;
  for (int i = 0; i < 16; ++i) v.lanes[i] = a.lanes[i] + b.lanes[i];
  return v;
}

inline Vec operator*(const Vec& a, const Vec& b) {
  Vec v;
  for (int i = 0; i < 16; ++i) v.lanes[i] = a.lanes[i] * b.lanes[i];
  return v;
}

inline Vec fma(const Vec& a, const Vec& b, const Vec& c) {
  Vec v;
  for (int i = 0; i < 16; ++i) v.lanes[i] = a.lanes[i] * b.lanes[i] + c.lanes[i];
  return v;
}

#include "cpu/steer_step_body.h"

}  // namespace dive::cpu::scalar
