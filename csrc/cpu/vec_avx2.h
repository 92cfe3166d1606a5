// A vector of 16 floats in two AVX registers. Included inside the namespace of each path that uses
// it, after DIVE_TARGET and DIVE_INLINE; no include guard for that reason.

constexpr int kChains = 1;  // 4 ranks x 2 registers are 8 sums already, and there are 16 registers

DIVE_INLINE __m256 load8(const float* from) { return _mm256_loadu_ps(from); }

DIVE_INLINE __m256 load8(const BFloat16* from) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

// Rounded to bfloat16 (nearest, ties to even, NaN kept), in the upper halves of 8 words.
DIVE_INLINE __m256i bf16_bits(__m256 value) {
  const __m256i bits = _mm256_castps_si256(value);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(up, _mm256_set1_epi32(0x7fc00000), nan);
}

DIVE_INLINE void store8(__m256 value, float* to) { _mm256_storeu_ps(to, value); }

DIVE_INLINE void store8(__m256 value, BFloat16* to) {
  const __m256i words = _mm256_srli_epi32(bf16_bits(value), 16);
  const __m128i packed =
      _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), packed);
}

template <class T>
DIVE_INLINE __m256 round8(__m256 value) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return _mm256_castsi256_ps(
        _mm256_and_si256(bf16_bits(value), _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  } else {
    return value;
  }
}

struct Vec {
  __m256 low, high;

  template <class T>
  DIVE_INLINE static Vec load(const T* from) {
    return {load8(from), load8(from + 8)};
  }
  template <class T>
  DIVE_INLINE void store(T* to) const {
    store8(low, to);
    store8(high, to + 8);
  }
  DIVE_INLINE static Vec splat(float value) {
    return {_mm256_set1_ps(value), _mm256_set1_ps(value)};
  }
  template <class T>
  DIVE_INLINE Vec rounded() const {
    return {round8<T>(low), round8<T>(high)};
  }
  DIVE_INLINE float sum() const {
    const __m256 eight = _mm256_add_ps(low, high);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
  }
};

DIVE_INLINE Vec operator+(Vec a, Vec b) {
  return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}

DIVE_INLINE Vec operator*(Vec a, Vec b) {
  return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}

DIVE_INLINE Vec fma(Vec a, Vec b, Vec c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}

DIVE_INLINE Vec operator-(Vec a, Vec b) {
  return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}

DIVE_INLINE Vec operator/(Vec a, Vec b) {
  return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}

DIVE_INLINE Vec larger(Vec a, Vec b) {
  return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}

DIVE_INLINE Vec smaller(Vec a, Vec b) {
  return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}

DIVE_INLINE Vec nearest_whole(Vec a) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.low, mode), _mm256_round_ps(a.high, mode)};
}

DIVE_INLINE __m256 power_of_two(__m256 whole) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}

// 2^whole for whole numbers from -126 to 127
DIVE_INLINE Vec power_of_two(Vec whole) {
  return {power_of_two(whole.low), power_of_two(whole.high)};
}
