/* A policy's network for one run: linear layers with tanh between them, and what its outputs come to as steps. */

#include <math.h>
#include <string.h>

/* tanh x = 1 - 2 / (exp 2x + 1), with the exponential from a power of two and a polynomial: to 2e-7, and vectorised. */
static void squash(float *x, int count)
{
    for (int i = 0; i < count; i++) {
        float within = x[i] < -9.0f ? -9.0f : x[i] > 9.0f ? 9.0f : x[i];
        float power = within * 2.885390082f; /* 2 / log 2 */
        float whole = (power + 12582912.0f) - 12582912.0f; /* 1.5 * 2^23: rounds to the nearest */
        float f = power - whole;
        float series = 0.00133335581f + f * 0.000154035304f; /* log(2)^n / n! */
        series = 0.0555041087f + f * (0.00961812911f + f * series);
        series = 1.0f + f * (0.693147182f + f * (0.240226507f + f * series));
        union { int bits; float number; } scale = { ((int)whole + 127) << 23 };
        x[i] = 1.0f - 2.0f / (series * scale.number + 1.0f);
    }
}

/* out += in[row] * weights[row] over the columns of each row that are not all zeros, spans[2 row] to spans[2 row + 1]. */
static void add_rows(const float *in, int rows, int columns, const float *weights, const int *spans, float *out)
{
    int row = 0;
    while (row < rows) {
        const float *w = weights + (long)row * columns;
        const int *span = spans + 2 * row;
        int alike = row + 3 < rows;
        for (int next = 2; alike && next < 8; next += 2)
            alike = span[next] == span[0] && span[next + 1] == span[1];
        if (alike) {
            const float *w1 = w + columns, *w2 = w1 + columns, *w3 = w2 + columns;
            float a = in[row], b = in[row + 1], c = in[row + 2], d = in[row + 3];
            for (int at = span[0]; at < span[1]; at++)
                out[at] += a * w[at] + b * w1[at] + c * w2[at] + d * w3[at];
            row += 4;
        } else {
            for (int at = span[0]; at < span[1]; at++)
                out[at] += in[row] * w[at];
            row += 1;
        }
    }
}

/* parameters: of each layer the bias and then the weights, an input's row after the other; hidden has room for all
   layers' outputs, of which the last come last. */
void run_network(const float *seen, int layers, const int *widths, const float *parameters, const int *spans,
                 float *hidden)
{
    const float *in = seen;
    for (int layer = 0; layer < layers; layer++) {
        int rows = widths[layer], columns = widths[layer + 1];
        memcpy(hidden, parameters, columns * sizeof(float));
        add_rows(in, rows, columns, parameters + columns, spans, hidden);
        if (layer + 1 < layers)
            squash(hidden, columns);
        parameters += columns + (long)rows * columns;
        spans += 2 * rows;
        in = hidden;
        hidden += columns;
    }
}

/* Of each knob the mean of its steps under the softmax of its outputs, or where it is whole the most probable one. */
void find_steps(const float *outputs, int knobs, const int *choices, const int *whole, const float *sizes, float *steps)
{
    for (int knob = 0; knob < knobs; knob++) {
        int best = 0;
        for (int own = 1; own < choices[knob]; own++)
            if (outputs[own] > outputs[best])
                best = own;
        float sum = 0.0f, mean = 0.0f;
        for (int own = 0; own < choices[knob]; own++) {
            float chance = expf(outputs[own] - outputs[best]);
            sum += chance;
            mean += chance * sizes[own];
        }
        steps[knob] = whole[knob] ? sizes[best] : mean / sum;
        outputs += choices[knob];
        sizes += choices[knob];
    }
}
