/* What a probe takes of an update: products of its vectors with one another. */

#include <stddef.h>
#include <string.h>

typedef float lanes __attribute__((vector_size(32))); /* eight sums side by side */
enum { GG, MM, WW, GM, PP, SS, GP, GS, PS, MS, COUNT };

static lanes load(const float *at, long count)
{
    lanes found = { 0 };
    if (count < 8)
        memcpy(&found, at, count * sizeof(float));
    else
        memcpy(&found, at, sizeof found);
    return found;
}

/* update and last are momentum, weights and gradient, of size numbers each, of an update and of the one before it.
   A number of each vector counts as many times as stand says, or where that is NULL once. found: as telemetry.PROBE
   names them; without a last all that is about it is 0. */
void probe(const float *update, const float *last, long size, const float *stand, float *found)
{
    int paired = last != NULL;
    if (!paired)
        last = update;
    lanes sums[COUNT] = { 0 };
    for (long at = 0; at < size; at += 8) {
        long count = size - at;
        lanes m = load(update + at, count), w = load(update + size + at, count), g = load(update + 2 * size + at, count);
        lanes s = w - load(last + size + at, count), p = load(last + 2 * size + at, count);
        lanes M = m, W = w, G = g, P = p, S = s;
        if (stand) {
            lanes own = load(stand + at, count);
            M *= own, W *= own, G *= own, P *= own, S *= own;
        }
        sums[GG] += G * g, sums[MM] += M * m, sums[WW] += W * w, sums[GM] += G * m, sums[PP] += P * p;
        sums[SS] += S * s, sums[GP] += G * p, sums[GS] += G * s, sums[PS] += P * s, sums[MS] += M * s;
    }
    found[0] = 1.0f;
    found[1] = paired;
    for (int product = 0; product < COUNT; product++) {
        lanes own = sums[product];
        found[2 + product] = !paired && product >= PP ? 0.0f : ((own[0] + own[1]) + (own[2] + own[3])) + ((own[4] + own[5]) + (own[6] + own[7]));
    }
}
