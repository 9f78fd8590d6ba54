/* float32 <-> float16 by the processor's own instructions, which numpy does not use: twenty times as fast.

   Optional: where this was not compiled, or the processor lacks the instructions, numpy does the work. Both
   functions round to the nearest, ties to even, and return 1 if they met a NaN, whose payload processors treat
   in their own ways; the caller then converts again by numpy. */

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

#else

EXPORT int lorapipe_supported(void)
{
    return 0;
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
