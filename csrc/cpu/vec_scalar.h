// A vector of 16 floats in portable C++. Included inside the namespace of each file that uses it;
// no include guard for that reason.

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

inline Vec operator-(const Vec& a, const Vec& b) {
  Vec v;
  for (int i = 0; i < 16; ++i) v.lanes[i] = a.lanes[i] - b.lanes[i];
  return v;
}

inline Vec operator/(const Vec& a, const Vec& b) {
  Vec v;
  for (int i = 0; i < 16; ++i) v.lanes[i] = a.lanes[i] / b.lanes[i];
  return v;
}

inline Vec larger(const Vec& a, const Vec& b) {
  Vec v;
  for (int i = 0; i < 16; ++i) v.lanes[i] = a.lanes[i] > b.lanes[i] ? a.lanes[i] : b.lanes[i];
  return v;
}

inline Vec smaller(const Vec& a, const Vec& b) {
  Vec v;
  for (int i = 0; i < 16; ++i) v.lanes[i] = a.lanes[i] < b.lanes[i] ? a.lanes[i] : b.lanes[i];
  return v;
}

inline Vec nearest_whole(const Vec& a) {
  Vec v;
  for (int i = 0; i < 16; ++i) v.lanes[i] = std::nearbyint(a.lanes[i]);
  return v;
}

// 2^whole for whole numbers from -126 to 127
inline Vec power_of_two(const Vec& whole) {
  Vec v;
  for (int i = 0; i < 16; ++i) v.lanes[i] = std::ldexp(1.0f, static_cast<int>(whole.lanes[i]));
  return v;
}
