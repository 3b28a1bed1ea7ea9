/* Attention, dropout and layer norm of T5 on a CPU, each in one pass. `native.py` compiles and calls this file.

   The rows of a padding-free batch lie end to end. One task is one head of one example: its scores, probabilities and gradients stay in
   the cache of a core. Products are computed in tiles of ROWS by 2 vectors, which fill the registers.

   Letters: N heads, D size of a head, P prefix, Q queries and K keys of an example, W = P + K. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#define ROWS 12
#elif defined(__AVX__)
#define LANES 8
#define ROWS 6
#else
#define LANES 4
#define ROWS 6
#endif
#define PANEL (2 * LANES)
#define BLOCK 48    /* queries at once */
#define SMALL 32768 /* elements that one thread takes sooner than it wakes another, as in torch */

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static inline long rounded(long size) { return (size + PANEL - 1) / PANEL * PANEL; }

/* Copy a matrix [depth, columns] into panels [rounded(columns) / PANEL, depth, PANEL], with zeros behind the last column. */
static void pack(const float *from, long depth, long columns, long down, long across, float *panels, long total) {
  for (long first = 0; first < columns; first += PANEL) {
    long width = columns - first < PANEL ? columns - first : PANEL;
    float *to = panels + first * total;
    for (long k = 0; k < depth; k++, to += PANEL) {
      const float *row = from + k * down + first * across;
      if (across == 1 && width == PANEL) {
        memcpy(to, row, sizeof(float) * PANEL);
        continue;
      }
      for (long j = 0; j < width; j++) to[j] = row[j * across];
      for (long j = width; j < PANEL; j++) to[j] = 0;
    }
  }
}

static inline __attribute__((always_inline)) void tile(int rows, long depth, const float *a, long down, long across,
                                                       const float *panel, float *to, long stride, int width, int add) {
  vec sums[ROWS][2];
#pragma GCC unroll 16
  for (int r = 0; r < rows; r++) sums[r][0] = sums[r][1] = (vec){0};
  for (long k = 0; k < depth; k++) {
    vec left = *(const vec *)(panel + k * PANEL), right = *(const vec *)(panel + k * PANEL + LANES);
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
      float factor = a[r * down + k * across];
      sums[r][0] += factor * left;
      sums[r][1] += factor * right;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; r++, to += stride) {
    if (width == PANEL) {
      vec *left = (vec *)to, *right = (vec *)(to + LANES);
      if (add) sums[r][0] += *left, sums[r][1] += *right;
      *left = sums[r][0], *right = sums[r][1];
      continue;
    }
    float row[PANEL];
    *(vec *)row = sums[r][0];
    *(vec *)(row + LANES) = sums[r][1];
    for (int j = 0; j < width; j++) to[j] = add ? to[j] + row[j] : row[j];
  }
}

/* Write the product of a [rows, depth] and packed panels [depth, columns] to `to`, or add it. */
static void multiply(long rows, long depth, long columns, const float *a, long down, long across, const float *panels,
                     long total, float *to, long stride, int add) {
  for (long first = 0; first < columns; first += PANEL) {
    const float *panel = panels + first * total;
    int width = columns - first < PANEL ? (int)(columns - first) : PANEL;
    for (long r = 0; r < rows; r += ROWS) {
      const float *own = a + r * down;
      float *out = to + r * stride + first;
      switch (rows - r < ROWS ? rows - r : ROWS) {
#define CASE(n) case n: tile(n, depth, own, down, across, panel, out, stride, width, add); break;
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if ROWS > 6
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
      }
    }
  }
}

/* e^x for x <= 0, within 2 units in the last place; 0 below -87, and NaN for NaN. */
static inline float exponential(float x) {
  float clamped = x < -87.0f ? -87.0f : x;
  float shifted = clamped * 1.44269504f + 12582912.0f; /* 1.5 * 2^23, whose last bits are the integer */
  int32_t power;
  memcpy(&power, &shifted, 4);
  float whole = shifted - 12582912.0f;
  float rest = clamped - whole * 0.693359375f + whole * 2.12194440e-4f;
  float y = 1.9875691e-4f;
  y = y * rest + 1.3981999e-3f;
  y = y * rest + 8.3334519e-3f;
  y = y * rest + 4.1665796e-2f;
  y = y * rest + 1.6666665e-1f;
  y = y * rest + 5.0000001e-1f;
  y = y * rest * rest + rest + 1.0f;
  int32_t bits = (power + 127) << 23;
  float scale;
  memcpy(&scale, &bits, 4);
  return x < -87.0f ? 0.0f : y * scale;
}

static void softmax(float *row, long width, long padded) {
  for (long j = width; j < padded; j++) row[j] = -INFINITY;
  float most = -INFINITY, sum = 0;
#pragma omp simd reduction(max : most)
  for (long j = 0; j < padded; j++) most = row[j] > most ? row[j] : most;
#pragma omp simd reduction(+ : sum)
  for (long j = 0; j < padded; j++) {
    row[j] = exponential(row[j] - most);
    sum += row[j];
  }
  float scale = 1 / sum;
#pragma omp simd
  for (long j = 0; j < padded; j++) row[j] *= scale;
}

static inline float kept(uint8_t byte, int threshold, float scale) { return byte >= threshold ? scale : 0.0f; }

/* The examples of a row, and how it is laid out. Starts and lengths are in tokens; places are those of the scores. */
typedef struct {
  long examples, heads, size, prefix;
  const int64_t *query_starts, *queries, *key_starts, *keys, *places;
  const float *bias; /* [N, longest Q, longest K], or NULL */
  long bias_head, bias_row;
  const uint8_t *mask; /* one byte for each score, or NULL */
  int threshold;
  float scale;
  int threads;
  const int64_t *prefixes; /* of each example: P, no more than `prefix`, and the addresses of keys and values; or NULL */
  long prefix_head;
} Layout;

static long largest(const int64_t *sizes, long count) {
  long most = 0;
  for (long i = 0; i < count; i++) most = sizes[i] > most ? sizes[i] : most;
  return most;
}

/* Return where the prefix [P, D] of a head starts, of its keys (1) or values (2): of `shared` [N, P, D], or of that of an example. */
static const float *prefix_of(const Layout *at, const float *shared, long example, long head, int part) {
  if (at->prefixes && at->prefixes[3 * example]) return (const float *)at->prefixes[3 * example + part] + head * at->prefix_head;
  return shared ? shared + head * at->prefix * at->size : NULL;
}

/* Pack the keys, or values, of a head behind its prefix `before` [P, D] as they are multiplied: [W, D], or as [D, W] where `turned`. */
static void pack_keys(const Layout *at, const float *before, long prefix, const float *row, long example, long head, int turned,
                      float *panels) {
  long size = at->size, stride = at->heads * size, keys = at->keys[example], width = prefix + keys;
  const float *own = row + at->key_starts[example] * stride + head * size;
  if (!turned) {
    for (long first = 0; first < size; first += PANEL) {
      long part = size - first < PANEL ? size - first : PANEL;
      float *panel = panels + first * width;
      if (before) pack(before + first, prefix, part, size, 1, panel, 0);
      pack(own + first, keys, part, stride, 1, panel + prefix * PANEL, 0);
    }
    return;
  }
  for (long first = 0; first < width; first += PANEL, panels += size * PANEL) {
    for (long j = 0; j < PANEL; j++) {
      long key = first + j;
      const float *from = key < prefix ? before + key * size : own + (key - prefix) * stride;
      if (key < width)
        for (long d = 0; d < size; d++) panels[d * PANEL + j] = from[d];
      else
        for (long d = 0; d < size; d++) panels[d * PANEL + j] = 0;
    }
  }
}

/* Attend: query [Q.., N, D], key and value [K.., N, D], prefixes [N, P, D] -> output [Q.., N, D].
   `probabilities` holds [N, Q, W] of each example, or is NULL. Return 0, or 1 where memory is missing. */
int attention_forward(const Layout *at, const float *query, const float *key, const float *value, const float *prefix_key,
                      const float *prefix_value, float *output, float *probabilities) {
  long size = at->size, stride = at->heads * size, longest = rounded(at->prefix + largest(at->keys, at->examples));
  int failed = 0;
#pragma omp parallel num_threads(at->threads)
  {
    float *keys = malloc(sizeof(float) * longest * (size + rounded(size) + BLOCK));
    float *values = keys + longest * size, *scores = values + longest * rounded(size);
    if (!keys)
#pragma omp atomic write
      failed = 1;
#pragma omp for schedule(dynamic, 1)
    for (long task = 0; task < at->examples * at->heads; task++) {
      long example = task / at->heads, head = task % at->heads;
      long prefix = at->prefixes ? at->prefixes[3 * example] : at->prefix, queries = at->queries[example];
      long width = prefix + at->keys[example], padded = rounded(width);
      long place = at->places[example] + head * queries * width;
      const float *before_keys = prefix_of(at, prefix_key, example, head, 1), *before_values = prefix_of(at, prefix_value, example, head, 2);
      if (!keys) continue;
      pack_keys(at, before_keys, prefix, key, example, head, 1, keys);
      pack_keys(at, before_values, prefix, value, example, head, 0, values);
      for (long first = 0; first < queries; first += BLOCK) {
        long count = queries - first < BLOCK ? queries - first : BLOCK;
        long start = (at->query_starts[example] + first) * stride + head * size;
        multiply(count, size, padded, query + start, stride, 1, keys, size, scores, padded, 0);
        for (long i = 0; i < count; i++) {
          float *row = scores + i * padded;
          long from = place + (first + i) * width;
          if (at->bias) {
            const float *bias = at->bias + head * at->bias_head + (first + i) * at->bias_row;
            for (long j = prefix; j < width; j++) row[j] += bias[j - prefix];
          }
          softmax(row, width, padded);
          if (probabilities) memcpy(probabilities + from, row, sizeof(float) * width);
          if (at->mask)
            for (long j = 0; j < width; j++) row[j] *= kept(at->mask[from + j], at->threshold, at->scale);
        }
        multiply(count, width, size, scores, padded, 1, values, width, output + start, stride, 0);
      }
    }
    free(keys);
  }
  return failed;
}

/* The gradients of `attention_forward`. Those that are NULL are not computed; those of prefixes are [examples, N, P, D], and that of
   the scores is laid out as the probabilities. */
int attention_backward(const Layout *at, const float *query, const float *key, const float *value, const float *prefix_key,
                       const float *prefix_value, const float *probabilities, const float *grad, float *grad_query, float *grad_key,
                       float *grad_value, float *grad_prefix_key, float *grad_prefix_value, float *grad_scores) {
  long size = at->size, stride = at->heads * size, panels = rounded(size);
  long longest = rounded(at->prefix + largest(at->keys, at->examples));
  int failed = 0;
#pragma omp parallel num_threads(at->threads)
  {
    float *keys = malloc(sizeof(float) * (longest * (3 * panels + size + 2 * BLOCK) + 2 * BLOCK * panels));
    float *values = keys + longest * panels, *to_keys = values + longest * size, *to_values = to_keys + longest * panels;
    float *scores = to_values + longest * panels, *dropped = scores + longest * BLOCK;
    float *queries_packed = dropped + longest * BLOCK, *grads_packed = queries_packed + BLOCK * panels;
    if (!keys)
#pragma omp atomic write
      failed = 1;
#pragma omp for schedule(dynamic, 1)
    for (long task = 0; task < at->examples * at->heads; task++) {
      long example = task / at->heads, head = task % at->heads, prefix = at->prefix;
      long queries = at->queries[example], width = prefix + at->keys[example], padded = rounded(width);
      long place = at->places[example] + head * queries * width;
      if (!keys) continue;
      pack_keys(at, prefix_of(at, prefix_key, example, head, 1), prefix, key, example, head, 0, keys);
      pack_keys(at, prefix_of(at, prefix_value, example, head, 2), prefix, value, example, head, 1, values);
      for (long first = 0; first < queries; first += BLOCK) {
        long count = queries - first < BLOCK ? queries - first : BLOCK;
        long start = (at->query_starts[example] + first) * stride + head * size;
        multiply(count, size, padded, grad + start, stride, 1, values, size, scores, padded, 0);
        for (long i = 0; i < count; i++) {
          long from = place + (first + i) * width;
          const float *p = probabilities + from;
          float *row = scores + i * padded, *own = dropped + i * padded, sum = 0;
          if (at->mask) {
            const uint8_t *mask = at->mask + from;
#pragma omp simd reduction(+ : sum)
            for (long j = 0; j < width; j++) {
              float factor = kept(mask[j], at->threshold, at->scale);
              own[j] = p[j] * factor;
              row[j] *= factor;
              sum += p[j] * row[j];
            }
          } else {
#pragma omp simd reduction(+ : sum)
            for (long j = 0; j < width; j++) {
              own[j] = p[j];
              sum += p[j] * row[j];
            }
          }
#pragma omp simd
          for (long j = 0; j < width; j++) row[j] = p[j] * (row[j] - sum);
          if (grad_scores) memcpy(grad_scores + from, row, sizeof(float) * width);
        }
        if (grad_query) multiply(count, width, size, scores, padded, 1, keys, width, grad_query + start, stride, 0);
        if (grad_key || grad_prefix_key) {
          pack(query + start, count, size, stride, 1, queries_packed, count);
          multiply(width, count, size, scores, 1, padded, queries_packed, count, to_keys, size, first > 0);
        }
        if (grad_value || grad_prefix_value) {
          pack(grad + start, count, size, stride, 1, grads_packed, count);
          multiply(width, count, size, dropped, 1, padded, grads_packed, count, to_values, size, first > 0);
        }
      }
      long columns = size * sizeof(float), own = at->key_starts[example] * stride + head * size;
      if (grad_prefix_key) memcpy(grad_prefix_key + task * prefix * size, to_keys, prefix * columns);
      if (grad_prefix_value) memcpy(grad_prefix_value + task * prefix * size, to_values, prefix * columns);
      for (long j = prefix; j < width; j++) {
        if (grad_key) memcpy(grad_key + own + (j - prefix) * stride, to_keys + j * size, columns);
        if (grad_value) memcpy(grad_value + own + (j - prefix) * stride, to_values + j * size, columns);
      }
    }
    free(keys);
  }
  return failed;
}

/* Add the gradients of the scores of all examples to that of the bias [N, longest Q, longest K]. */
void bias_backward(const Layout *at, const float *grad_scores, float *grad_bias) {
#pragma omp parallel for num_threads(at->threads)
  for (long head = 0; head < at->heads; head++)
    for (long example = 0; example < at->examples; example++) {
      long queries = at->queries[example], width = at->prefix + at->keys[example];
      for (long i = 0; i < queries; i++) {
        const float *from = grad_scores + at->places[example] + (head * queries + i) * width + at->prefix;
        float *to = grad_bias + head * at->bias_head + i * at->bias_row;
        for (long j = 0; j < at->keys[example]; j++) to[j] += from[j];
      }
    }
}

/* Multiply each element by 0 or `scale`, by whether its byte is below the threshold. */
void dropout(const float *x, const uint8_t *mask, long count, int threshold, float scale, float *to, int threads) {
#pragma omp parallel for simd schedule(static) num_threads(count < SMALL ? 1 : threads)
  for (long i = 0; i < count; i++) to[i] = x[i] * kept(mask[i], threshold, scale);
}

/* Normalize x [rows, size]; keep 1 / sqrt(mean(x^2) + epsilon) of each row. */
void norm_forward(const float *x, const float *weight, long rows, long size, float epsilon, float *inverse, float *to,
                  int threads) {
#pragma omp parallel for schedule(static) num_threads(rows * size < SMALL ? 1 : threads)
  for (long i = 0; i < rows; i++) {
    const float *row = x + i * size;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long j = 0; j < size; j++) sum += row[j] * row[j];
    float scale = inverse[i] = 1 / sqrtf(sum / size + epsilon);
#pragma omp simd
    for (long j = 0; j < size; j++) to[i * size + j] = row[j] * scale * weight[j];
  }
}

/* The gradient of the input of `norm_forward`. */
void norm_backward(const float *grad, const float *x, const float *weight, const float *inverse, long rows, long size, float *to,
                   int threads) {
#pragma omp parallel for schedule(static) num_threads(rows * size < SMALL ? 1 : threads)
  for (long i = 0; i < rows; i++) {
    const float *own = grad + i * size, *row = x + i * size;
    float sum = 0, scale = inverse[i];
#pragma omp simd reduction(+ : sum)
    for (long j = 0; j < size; j++) sum += own[j] * weight[j] * row[j];
    float pull = sum * scale * scale * scale / size;
#pragma omp simd
    for (long j = 0; j < size; j++) to[i * size + j] = own[j] * weight[j] * scale - row[j] * pull;
  }
}
