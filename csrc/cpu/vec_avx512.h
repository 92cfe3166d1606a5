// A vector of 16 floats in one AVX-512 register. Included inside the namespace of each path that
// uses it, after DIVE_TARGET and DIVE_INLINE; no include guard for that reason.

constexpr int kChains = 4;  // 4 ranks x 4 chains are 16 of the 32 registers

DIVE_INLINE __m512 load16(const float* from) { return _mm512_loadu_ps(from); }

DIVE_INLINE __m512 load16(const BFloat16* from) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

// Rounded to bfloat16 (nearest, ties to even, NaN kept), in the upper halves of 16 words. Not by
// vcvtneps2bf16, which takes subnormal numbers for zero.
DIVE_INLINE __m512i bf16_bits(__m512 value) {
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  return _mm512_mask_mov_epi32(up, nan, _mm512_set1_epi32(0x7fc00000));
}

DIVE_INLINE void store16(__m512 value, float* to) { _mm512_storeu_ps(to, value); }

DIVE_INLINE void store16(__m512 value, BFloat16* to) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm512_cvtepi32_epi16(_mm512_srli_epi32(bf16_bits(value), 16)));
}

struct Vec {
  __m512 lanes;

  template <class T>
  DIVE_INLINE static Vec load(const T* from) {
    return {load16(from)};
  }
  template <class T>
  DIVE_INLINE void store(T* to) const {
    store16(lanes, to);
  }
  DIVE_INLINE static Vec splat(float value) { return {_mm512_set1_ps(value)}; }
  template <class T>
  DIVE_INLINE Vec rounded() const {
    if constexpr (std::is_same_v<T, BFloat16>) {
      return {_mm512_castsi512_ps(
          _mm512_and_si512(bf16_bits(lanes), _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
    } else {
      return *this;
    }
  }
  DIVE_INLINE float sum() const { return _mm512_reduce_add_ps(lanes); }
};

DIVE_INLINE Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.lanes, b.lanes)}; }
DIVE_INLINE Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.lanes, b.lanes)}; }
DIVE_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.lanes, b.lanes, c.lanes)}; }

DIVE_INLINE Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.lanes, b.lanes)}; }
DIVE_INLINE Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.lanes, b.lanes)}; }
DIVE_INLINE Vec larger(Vec a, Vec b) { return {_mm512_max_ps(a.lanes, b.lanes)}; }
DIVE_INLINE Vec smaller(Vec a, Vec b) { return {_mm512_min_ps(a.lanes, b.lanes)}; }

DIVE_INLINE Vec nearest_whole(Vec a) {
  return {_mm512_roundscale_ps(a.lanes, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

// 2^whole for whole numbers from -126 to 127
DIVE_INLINE Vec power_of_two(Vec whole) {
  return {_mm512_scalef_ps(_mm512_set1_ps(1.0f), whole.lanes)};
}
