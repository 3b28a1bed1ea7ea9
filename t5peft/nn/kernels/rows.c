/* What the rows of a batch do in a step of generation, each with the prefix and the LoRA matrices of its own adapter. This file is
   compiled behind `native.c`. No sum of a row depends on what else is in the batch.

   Letters: B rows, N heads, D size of a head, P prefix, K keys, I inputs, O outputs, R rank. */

#include <float.h>
#include <omp.h>

#define TOKENS 4 /* at once, so that a matrix is read once for so many */

/* Write the products of one vector [size] and `count` <= TOKENS others to `to`, `stride` elements apart. */
static inline __attribute__((always_inline)) void dots(int count, const float *others, long step, const float *one, long size, float *to,
                                                       long stride) {
  vec sums[TOKENS] = {0};
  long first = 0;
  for (; first + LANES <= size; first += LANES)
    for (int i = 0; i < count; i++) sums[i] += *(const vec *)(others + i * step + first) * *(const vec *)(one + first);
  for (int i = 0; i < count; i++) {
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += sums[i][lane];
    for (long j = first; j < size; j++) sum += others[i * step + j] * one[j];
    to[i * stride] = sum;
  }
}

/* Add to `count` <= TOKENS rows of `to` the rows of `from` [depth, columns], times their factors [count, depth]. */
static inline __attribute__((always_inline)) void add_weighted(int count, const float *factors, long depth, const float *from, long step,
                                                               long columns, float *to, long stride) {
  long first = 0;
  for (; first + PANEL <= columns; first += PANEL) {
    vec sums[TOKENS][2] = {0}; /* added to what is there at the end, as each addition to a large number rounds */
    for (long k = 0; k < depth; k++)
      for (int i = 0; i < count; i++)
        for (int half = 0; half < 2; half++) sums[i][half] += factors[i * depth + k] * *(const vec *)(from + k * step + first + half * LANES);
    for (int i = 0; i < count; i++)
      for (int half = 0; half < 2; half++) *(vec *)(to + i * stride + first + half * LANES) += sums[i][half];
  }
  for (long j = first; j < columns; j++)
    for (int i = 0; i < count; i++) {
      float sum = 0;
      for (long k = 0; k < depth; k++) sum += factors[i * depth + k] * from[k * step + j];
      to[i * stride + j] += sum;
    }
}

/* The rows of an adapter, and its matrices a [R, I] and b [R, O]. */
typedef struct {
  int64_t first, count, rank;
  const float *a, *b;
} Branch;

/* Add the branches of some rows of x [rows, I] to those of y [rows, O]. Return 0, or 1 where memory is missing. */
int add_low_rank(const Branch *branches, long count, const float *x, long inputs, float *y, long outputs, int threads) {
  long work = 0, largest = 0;
  int failed = 0;
  for (long i = 0; i < count; i++) {
    work += branches[i].count * branches[i].rank * (inputs + outputs);
    largest = branches[i].rank > largest ? branches[i].rank : largest;
  }
#pragma omp parallel num_threads(work < SMALL ? 1 : threads)
  {
    float *inner = malloc(sizeof(float) * TOKENS * largest);
    if (!inner)
#pragma omp atomic write
      failed = 1;
    long task = 0;
    for (const Branch *branch = branches; inner && branch < branches + count; branch++) {
      for (long done = 0; done < branch->count; done += TOKENS) {
        if (task++ % omp_get_num_threads() != omp_get_thread_num()) continue;
        const float *from = x + (branch->first + done) * inputs;
        float *to = y + (branch->first + done) * outputs;
        long rank = branch->rank, left = branch->count - done;
#define BRANCH(n)                                                                                                      \
  for (long r = 0; r < rank; r++) dots(n, from, inputs, branch->a + r * inputs, inputs, inner + r, rank);              \
  add_weighted(n, inner, rank, branch->b, outputs, outputs, to, outputs);
        if (left >= 4) { BRANCH(4) }
        else if (left == 3) { BRANCH(3) }
        else if (left == 2) { BRANCH(2) }
        else { BRANCH(1) }
#undef BRANCH
      }
    }
    free(inner);
  }
  return failed;
}

/* One query of each row and head. Strides are in elements. */
typedef struct {
  long rows, heads, size, keys;
  long query_row, query_head, key_row, key_head, key_step, value_row, value_head, value_step;
  const float *bias; /* [1 or B, N, K], or NULL */
  long bias_row, bias_head;
  const float *mask; /* [B, K], or NULL */
  long mask_row;
  const int64_t *prefixes; /* of each row: P and the addresses of keys and values [N, P, D], or NULL */
  long longest_prefix, prefix_head;
  float scale;
  int threads;
} Queries;

/* Attend: query [B, N, D], key and value [B, N, K, D] -> output [B, N, D]. Keys that the mask hides at both ends are not read.
   Return 0, or 1 where memory is missing. */
int attend_rows(const Queries *at, const float *query, const float *key, const float *value, float *output) {
  long size = at->size, longest = rounded(at->longest_prefix + at->keys);
  int failed = 0;
#pragma omp parallel num_threads(at->rows * at->heads * size * longest < SMALL ? 1 : at->threads)
  {
    float *scores = malloc(sizeof(float) * (longest + size)), *scaled = scores + longest;
    if (!scores)
#pragma omp atomic write
      failed = 1;
#pragma omp for schedule(static)
    for (long task = 0; task < at->rows * at->heads; task++) {
      long row = task / at->heads, head = task % at->heads, first = 0, last = at->keys, prefix = 0;
      const float *mask = at->mask ? at->mask + row * at->mask_row : NULL;
      const float *bias = at->bias ? at->bias + row * at->bias_row + head * at->bias_head : NULL;
      const float *own = query + row * at->query_row + head * at->query_head;
      const float *keys = key + row * at->key_row + head * at->key_head;
      const float *values = value + row * at->value_row + head * at->value_head;
      const float *prefix_keys = NULL, *prefix_values = NULL;
      float *to = output + task * size;
      if (!scores) continue;
      if (at->prefixes && (prefix = at->prefixes[3 * row])) {
        prefix_keys = (const float *)at->prefixes[3 * row + 1] + head * at->prefix_head;
        prefix_values = (const float *)at->prefixes[3 * row + 2] + head * at->prefix_head;
      }
      if (mask) {
        while (last > 0 && mask[last - 1] == -FLT_MAX) last--;
        while (first < last && mask[first] == -FLT_MAX) first++;
        if (first == last && !prefix) first = 0, last = at->keys;
      }
      long count = last - first, width = prefix + count;
      for (long d = 0; d < size; d++) scaled[d] = own[d] * at->scale, to[d] = 0;
      for (long j = 0; j < prefix; j++) dots(1, prefix_keys + j * size, 0, scaled, size, scores + j, 0);
      for (long j = 0; j < count; j++) dots(1, keys + (first + j) * at->key_step, 0, scaled, size, scores + prefix + j, 0);
      if (bias)
        for (long j = 0; j < count; j++) scores[prefix + j] += bias[first + j];
      if (mask)
        for (long j = 0; j < count; j++) scores[prefix + j] += mask[first + j];
      softmax(scores, width, rounded(width));
      if (prefix) add_weighted(1, scores, prefix, prefix_values, size, size, to, 0);
      add_weighted(1, scores + prefix, count, values + first * at->value_step, at->value_step, size, to, 0);
    }
    free(scores);
  }
  return failed;
}
