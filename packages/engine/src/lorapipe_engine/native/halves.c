/* float32 <-> float16 by the processor's own instructions, which numpy does not use: twenty times as fast.

   Optional: where this was not compiled, or the processor lacks the instructions, numpy does the work. All
   functions round to the nearest, ties to even, and return 1 if they met a NaN, whose payload processors treat
   in their own ways; the caller then does it again by numpy. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#define WITH_F16C __attribute__((target("avx,f16c")))

EXPORT int lorapipe_supported(void)
{
    return __builtin_cpu_supports("avx") && __builtin_cpu_supports("f16c");
}

WITH_F16C EXPORT int lorapipe_decode_f16(const uint16_t *halves, float *values, size_t count)
{
    __m256 odd = _mm256_setzero_ps();
    size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        __m256 piece = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(halves + i)));
        odd = _mm256_or_ps(odd, _mm256_cmp_ps(piece, piece, _CMP_UNORD_Q));
        _mm256_storeu_ps(values + i, piece);
    }
    if (i < count) {
        uint16_t rest[8] = {0};
        float found[8];
        memcpy(rest, halves + i, (count - i) * sizeof *halves);
        __m256 piece = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)rest));
        odd = _mm256_or_ps(odd, _mm256_cmp_ps(piece, piece, _CMP_UNORD_Q));
        _mm256_storeu_ps(found, piece);
        memcpy(values + i, found, (count - i) * sizeof *values);
    }
    return _mm256_movemask_ps(odd) != 0;
}

WITH_F16C EXPORT int lorapipe_encode_f16(const float *values, uint16_t *halves, size_t count)
{
    __m256 odd = _mm256_setzero_ps();
    size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        __m256 piece = _mm256_loadu_ps(values + i);
        odd = _mm256_or_ps(odd, _mm256_cmp_ps(piece, piece, _CMP_UNORD_Q));
        _mm_storeu_si128((__m128i *)(halves + i), _mm256_cvtps_ph(piece, _MM_FROUND_TO_NEAREST_INT));
    }
    if (i < count) {
        float rest[8] = {0};
        uint16_t found[8];
        memcpy(rest, values + i, (count - i) * sizeof *values);
        __m256 piece = _mm256_loadu_ps(rest);
        odd = _mm256_or_ps(odd, _mm256_cmp_ps(piece, piece, _CMP_UNORD_Q));
        _mm_storeu_si128((__m128i *)found, _mm256_cvtps_ph(piece, _MM_FROUND_TO_NEAREST_INT));
        memcpy(halves + i, found, (count - i) * sizeof *halves);
    }
    return _mm256_movemask_ps(odd) != 0;
}

/* What is summed up while eight numbers at a time are added: squares, and minus one for each result met. */
struct lanes {
    __m256 base, change;
    __m128i infinite, small;
};

WITH_F16C static inline __m256 add_eight(const uint16_t *base, const float *change, __m256 scale, uint16_t *out,
                                         struct lanes *met)
{
    const __m128i exponent = _mm_set1_epi16(0x7C00);
    __m256 weight = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)base));
    __m256 moved = _mm256_mul_ps(_mm256_loadu_ps(change), scale);
    __m256 sum = _mm256_add_ps(weight, moved);
    __m128i half = _mm256_cvtps_ph(sum, _MM_FROUND_TO_NEAREST_INT);
    __m128i power = _mm_and_si128(half, exponent);
    met->infinite = _mm_add_epi16(met->infinite, _mm_cmpeq_epi16(power, exponent));
    met->small = _mm_add_epi16(met->small, _mm_cmpeq_epi16(power, _mm_setzero_si128()));
    met->base = _mm256_add_ps(met->base, _mm256_mul_ps(weight, weight));
    met->change = _mm256_add_ps(met->change, _mm256_mul_ps(moved, moved));
    _mm_storeu_si128((__m128i *)out, half);
    return _mm256_cmp_ps(sum, sum, _CMP_UNORD_Q);
}

WITH_F16C static void add_up(const struct lanes *met, double sums[2], int64_t counts[2])
{
    float base[8], change[8];
    int16_t infinite[8], small[8];
    _mm256_storeu_ps(base, met->base);
    _mm256_storeu_ps(change, met->change);
    _mm_storeu_si128((__m128i *)infinite, met->infinite);
    _mm_storeu_si128((__m128i *)small, met->small);
    for (int i = 0; i < 8; i++) {
        sums[0] += base[i];
        sums[1] += change[i];
        counts[0] -= infinite[i];
        counts[1] -= small[i];
    }
}

/* out = half(base + scale * change), each operation rounded, as numpy does it in three passes. Added to sums: the
   squares of the base and of the scaled change; to counts: results that are infinite, and that are 0 or subnormal. */
WITH_F16C EXPORT int lorapipe_add_f16(const uint16_t *base, const float *change, float scale, uint16_t *out,
                                      size_t count, double sums[2], int64_t counts[2])
{
    const __m256 factor = _mm256_set1_ps(scale);
    __m256 odd = _mm256_setzero_ps();
    size_t whole = count / 8 * 8;
    for (size_t start = 0; start < whole; start += 8192) { /* few enough for 16-bit counts and float sums */
        struct lanes even = {0}, other = {0};
        size_t i = start, stop = whole - start < 8192 ? whole : start + 8192;
        for (; i + 16 <= stop; i += 16) {
            odd = _mm256_or_ps(odd, add_eight(base + i, change + i, factor, out + i, &even));
            odd = _mm256_or_ps(odd, add_eight(base + i + 8, change + i + 8, factor, out + i + 8, &other));
        }
        if (i < stop)
            odd = _mm256_or_ps(odd, add_eight(base + i, change + i, factor, out + i, &even));
        add_up(&even, sums, counts);
        add_up(&other, sums, counts);
    }
    if (whole < count) {
        uint16_t rest[8] = {0}, found[8];
        float moved[8] = {0};
        struct lanes met = {0};
        memcpy(rest, base + whole, (count - whole) * sizeof *base);
        memcpy(moved, change + whole, (count - whole) * sizeof *change);
        odd = _mm256_or_ps(odd, add_eight(rest, moved, factor, found, &met));
        memcpy(out + whole, found, (count - whole) * sizeof *out);
        add_up(&met, sums, counts);
        counts[1] -= 8 - (int64_t)(count - whole); /* the zeros that filled it up */
    }
    return _mm256_movemask_ps(odd) != 0;
}

#elif defined(__aarch64__) && defined(__GNUC__)

EXPORT int lorapipe_supported(void)
{
    return 1;
}

EXPORT int lorapipe_decode_f16(const uint16_t *halves, float *values, size_t count)
{
    const __fp16 *source = (const __fp16 *)halves;
    int odd = 0;
    for (size_t i = 0; i < count; i++) {
        values[i] = (float)source[i];
        odd |= values[i] != values[i];
    }
    return odd;
}

EXPORT int lorapipe_encode_f16(const float *values, uint16_t *halves, size_t count)
{
    __fp16 *target = (__fp16 *)halves;
    int odd = 0;
    for (size_t i = 0; i < count; i++) {
        odd |= values[i] != values[i];
        target[i] = (__fp16)values[i];
    }
    return odd;
}

EXPORT int lorapipe_add_f16(const uint16_t *base, const float *change, float scale, uint16_t *out, size_t count,
                            double sums[2], int64_t counts[2])
{
    const __fp16 *source = (const __fp16 *)base;
    int odd = 0;
    for (size_t i = 0; i < count; i++) {
        volatile float moved = change[i] * scale; /* rounded before it is added */
        float weight = (float)source[i], sum = weight + moved;
        odd |= sum != sum;
        ((__fp16 *)out)[i] = (__fp16)sum;
        counts[0] += (out[i] & 0x7C00) == 0x7C00;
        counts[1] += (out[i] & 0x7C00) == 0;
        sums[0] += (double)weight * weight;
        sums[1] += (double)moved * moved;
    }
    return odd;
}

#else

EXPORT int lorapipe_supported(void)
{
    return 0;
}

EXPORT int lorapipe_add_f16(const uint16_t *base, const float *change, float scale, uint16_t *out, size_t count,
                            double sums[2], int64_t counts[2])
{
    (void)base, (void)change, (void)scale, (void)out, (void)count, (void)sums, (void)counts;
    return 1;
}

EXPORT int lorapipe_decode_f16(const uint16_t *halves, float *values, size_t count)
{
    (void)halves, (void)values, (void)count;
    return 1;
}

EXPORT int lorapipe_encode_f16(const float *values, uint16_t *halves, size_t count)
{
    (void)values, (void)halves, (void)count;
    return 1;
}

#endif
