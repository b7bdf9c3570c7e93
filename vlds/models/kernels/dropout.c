/* Dropout by example in one pass over the values; dropout.py says which keys there are. */

#include <stdint.h>
#include <string.h>

#define BLOCK 256 /* hashes of 64 bits, which stay in the nearest cache */
#define WIDTH (4 * BLOCK)

/* Four draws of 16 bits for each of n features' keys. */
static void draw(int64_t row, const int64_t *features, int64_t n, int64_t multiplier, int64_t *hashes)
{
    for (int64_t lane = 0; lane < n; lane++) {
        int64_t mixed = row + features[lane];
        hashes[lane] = (int64_t)((uint64_t)(mixed ^ (mixed >> 32)) * (uint64_t)multiplier);
    }
}

static inline uint16_t scaled_bf16(uint16_t value, float scale)
{
    uint32_t bits = (uint32_t)value << 16;
    float wide;
    memcpy(&wide, &bits, 4);
    wide *= scale;
    memcpy(&bits, &wide, 4);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16); /* to the nearest, ties to even */
}

static inline float scaled_f32(float value, float scale) { return value * scale; }

/* values (m, n), rows a stride apart -> dropped: scaled where a draw is above `last`, else 0. The
   lengths of the inner loops are whole vectors; of narrow rows, most would else be done singly. */
#define DROP(NAME, TYPE, SCALED)                                                                    \
    void NAME(const TYPE *values, int64_t stride, TYPE *dropped, int64_t dropped_stride, int64_t m, \
              int64_t n, const int64_t *rows, const int64_t *features, int64_t multiplier,          \
              int16_t last, float scale)                                                            \
    {                                                                                               \
        int64_t keys[BLOCK], hashes[BLOCK];                                                         \
        int16_t draws[WIDTH];                                                                       \
        for (int64_t start = 0; start < n; start += WIDTH) {                                        \
            int64_t size = n - start < WIDTH ? n - start : WIDTH;                                   \
            int64_t whole = (size + 31) / 32 * 32;                                                  \
            memset(keys, 0, sizeof keys);                                                           \
            memcpy(keys, features + start / 4, (size + 3) / 4 * sizeof *keys);                      \
            for (int64_t row = 0; row < m; row++) {                                                 \
                draw(rows[row], keys, whole / 4, multiplier, hashes);                               \
                memcpy(draws, hashes, whole * sizeof *draws);                                       \
                const TYPE *restrict from = values + row * stride + start;                          \
                TYPE *restrict to = dropped + row * dropped_stride + start;                         \
                for (int64_t place = 0; place < size; place++)                                      \
                    to[place] = draws[place] > last ? SCALED(from[place], scale) : 0;               \
            }                                                                                       \
        }                                                                                           \
    }

DROP(drop_bf16, uint16_t, scaled_bf16)
DROP(drop_f32, float, scaled_f32)
