/* Kernels of the runtime's tests, by the kernel ABI of infc_artifact::abi. */
typedef unsigned long long u64; typedef long long i64;
#define KERNEL(name) u64 name(void *const *b, const i64 *e, void *s, i64 i, i64 n)
#define F(k) ((float *)b[k])
/* out[t] = sum over j of x[t][j] * w[j], with rows of e[0] elements kept in scratch first */
KERNEL(dot) {
  float *row = s;
  for (; i < n; i++) {
    float sum = 0;
    for (i64 j = 0; j < e[0]; j++) row[j] = F(0)[i * e[0] + j] * F(1)[j];
    for (i64 j = 0; j < e[0]; j++) sum += row[j];
    F(2)[i] = sum;
  }
  return 0;
}
/* out = a + b, elementwise */
KERNEL(add) { for (; i < n; i++) F(2)[i] = F(0)[i] + F(1)[i]; return 0; }
/* out[t] = a[t] + e[0] */
KERNEL(plus) { for (; i < n; i++) F(1)[i] = F(0)[i] + (float)e[0]; return 0; }
/* fails with code t / 10 at the first t with x[t] < 0 */
KERNEL(guard) { for (; i < n; i++) if (F(0)[i] < -0.f) return 1 + i / 10; return 0; }
/* out[0] = number of positive elements, which are written to the second output */
KERNEL(positive) {
  i64 k = 0;
  for (i64 j = 0; j < e[0]; j++) if (F(0)[j] > 0) F(2)[k++] = F(0)[j];
  *(i64 *)b[1] = k;
  return 0;
}
/* flag = x[0] < e[0] */
KERNEL(less) { *(unsigned char *)b[1] = F(0)[0] < (float)e[0]; return 0; }
/* x += 1 in place */
KERNEL(bump) { for (; i < n; i++) F(0)[i] += (float)e[0]; return 0; }
/* writes the thread's rounding of a subnormal: 0 if it is flushed */
KERNEL(tiny) { for (; i < n; i++) F(1)[i] = F(0)[i] * F(0)[i]; return 0; }
