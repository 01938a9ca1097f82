// Attention of one new column over an int8 ring, all slots and heads of a layer in one launch.
//
// Block (split, head, slot) reads SPLIT columns of the ring. Eight lanes share a key: each holds 16
// of its 128 numbers, so that a warp has 32 keys in flight, and each lane ends up with the score
// of one key and takes one exponential. The block whose columns hold the new one turns it, rounds
// it to int8, writes it, and reads what it wrote from its registers. The last block to arrive
// joins the parts, in the order of the splits: no sum depends on who came when, on the number of
// slots or on the bucket. An idle slot costs a launch of nothing and gets zeros.
//
// The oracles are RingPush of transformer.py and the Triton kernel of kernels_attention.py.

typedef unsigned int u32;
typedef unsigned short u16;
typedef long long i64;

constexpr int D = 128;        // numbers of a head
constexpr int SPLIT = 256;    // columns of a block
constexpr int WARPS = 4;
constexpr int KEYS = 8;       // of a lane's group in flight: 32 a warp
constexpr float LOW = -1e30f; // below every score
constexpr float MOST = 127.f; // steps on either side of zero
constexpr float TINY = 6e-8f; // smallest scale

__device__ __forceinline__ uint4 load16(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}
__device__ __forceinline__ float from_half(u16 h) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
  return f;
}
__device__ __forceinline__ u16 to_half(float f) {
  u16 h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
  return h;
}
__device__ __forceinline__ float from_bf16(u16 b) { return __uint_as_float((u32)b << 16); }
__device__ __forceinline__ u16 to_bf16(float f) {
  u16 b;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(b) : "f"(f));
  return b;
}

// Four int8 as floats: each byte becomes the low bits of 2^23 + 128 + value, exactly.
__device__ __forceinline__ void four(u32 x, float* f) {
  x ^= 0x80808080u;
  f[0] = __uint_as_float(__byte_perm(x, 0x4B000000u, 0x7540)) - 8388736.f;
  f[1] = __uint_as_float(__byte_perm(x, 0x4B000000u, 0x7541)) - 8388736.f;
  f[2] = __uint_as_float(__byte_perm(x, 0x4B000000u, 0x7542)) - 8388736.f;
  f[3] = __uint_as_float(__byte_perm(x, 0x4B000000u, 0x7543)) - 8388736.f;
}
__device__ __forceinline__ void sixteen(const uint4& v, float* f) {
  four(v.x, f);
  four(v.y, f + 4);
  four(v.z, f + 8);
  four(v.w, f + 12);
}

// One number of a head's vector, rotated by interleaved pairs and rounded as the plain code does.
__device__ __forceinline__ float rotated(const u16* vector, const float* turn, int d) {
  float value = from_bf16(vector[d]), other = from_bf16(vector[d ^ 1]);
  float cos = turn[d & ~1], sin = turn[(d & ~1) + 1];
  return from_bf16(to_bf16(value * cos + (d & 1 ? other : -other) * sin));
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int o = 16; o; o >>= 1) x = fmaxf(x, __shfl_xor_sync(~0u, x, o));
  return x;
}
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int o = 16; o; o >>= 1) x += __shfl_xor_sync(~0u, x, o);
  return x;
}

// One number of a column as the ring keeps it: stored, and given back as it will be read.
__device__ __forceinline__ float store(float x, float most, signed char* ring, u16* scale, int d) {
  u16 kept = to_half(fmaxf(most / MOST, TINY));
  float step = from_half(kept);
  float steps = fminf(fmaxf(floorf(x / step + 0.5f), -MOST), MOST);
  ring[d] = (signed char)steps;
  if (d == 0) *scale = kept;
  return steps * step;
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, 4) attend_int8(
    const u16* qkv,           // [slots, 3, heads, D] bf16, not yet rotated
    const float* turn,        // [slots, D / 2, 2]: cos and sin
    signed char* kv, u16* scales,
    const i64* position,      // [slots]: columns pushed before this one
    const bool* active,       // [slots]
    float* part, float* stat, // [slots, heads, splits, D] and [..., 2]: sums; top and weight
    int* arrived,             // [slots, heads], zeros before and after
    u16* out,                 // [slots, heads, D] bf16
    i64 capacity, i64 kv_which, i64 kv_slot, i64 kv_head,
    i64 scale_which, i64 scale_slot, i64 scale_head, float factor) {
  const int split = blockIdx.x, head = blockIdx.y, slot = blockIdx.z;
  const int splits = gridDim.x, heads = gridDim.y;
  const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31, group = lane >> 3, j = lane & 7;
  const int which = slot * heads + head;
  out += (i64)which * D;
  if (!active[slot]) {
    if (split == 0) out[tid] = 0;
    return;
  }
  const i64 pushed = position[slot];
  const int length = (int)min(pushed + 1, capacity), column = (int)(pushed % capacity);
  const int start = split * SPLIT, end = min(start + SPLIT, length);
  if (start >= length) return;
  const int used = (length + SPLIT - 1) / SPLIT;

  __shared__ float query[D], sums[WARPS][D], tops[WARPS], weights[WARPS], firsts[WARPS], seconds[WARPS];
  __shared__ bool is_last;
  qkv += ((i64)slot * 3 * heads + head) * D;
  turn += (i64)slot * D;
  signed char* keys = kv + slot * kv_slot + head * kv_head;
  u16* key_scales = scales + slot * scale_slot + head * scale_head;
  const float mine = rotated(qkv, turn, tid) * factor;
  query[tid] = mine;

  // The new column, where it is this block's: what later columns will read of it.
  const bool own = start <= column && column < end;
  float own_score = LOW, own_value = 0;
  if (own) {
    float key = rotated(qkv + heads * D, turn, tid), value = from_bf16(qkv[2 * heads * D + tid]);
    float most_key = warp_max(fabsf(key)), most_value = warp_max(fabsf(value));
    if (lane == 0) firsts[warp] = most_key, seconds[warp] = most_value;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
      most_key = fmaxf(most_key, firsts[w]);
      most_value = fmaxf(most_value, seconds[w]);
    }
    key = store(key, most_key, keys + (i64)column * D, key_scales + column, tid);
    own_value = store(value, most_value, keys + kv_which + (i64)column * D,
                      key_scales + scale_which + column, tid);
    float score = warp_sum(mine * key);
    if (lane == 0) tops[warp] = score;
    __syncthreads();
    own_score = (tops[0] + tops[1]) + (tops[2] + tops[3]);
  }
  __syncthreads();

  float q[16], sum[16], top = LOW, weight = 0;
#pragma unroll
  for (int i = 0; i < 16; i++) q[i] = query[j * 16 + i], sum[i] = 0;
  const signed char* first_key = keys + j * 16;
  for (int n0 = start + warp * 32; n0 < end; n0 += WARPS * 32) {
    uint4 k[KEYS], v[KEYS];
#pragma unroll
    for (int u = 0; u < KEYS; u++)
      k[u] = load16(first_key + (i64)min(n0 + u * 4 + group, end - 1) * D);
#pragma unroll
    for (int u = 0; u < KEYS; u++)
      v[u] = load16(first_key + kv_which + (i64)min(n0 + u * 4 + group, end - 1) * D);
    const int n = n0 + j * 4 + group, at = min(n, end - 1); // the key whose score this lane takes
    const bool seen = n < end && n != column;
    const float key_scale = from_half(key_scales[at]);
    const float value_scale = from_half(key_scales[scale_which + at]);
    float score[KEYS];
#pragma unroll
    for (int u = 0; u < KEYS; u++) {
      float f[16], even = 0, odd = 0;
      sixteen(k[u], f);
#pragma unroll
      for (int i = 0; i < 16; i += 2) even += q[i] * f[i], odd += q[i + 1] * f[i + 1];
      score[u] = even + odd;
    }
    // Lane j of a group keeps key j: halves are exchanged and added three times.
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float send = j & 4 ? score[i] : score[i + 4], keep = j & 4 ? score[i + 4] : score[i];
      score[i] = keep + __shfl_xor_sync(~0u, send, 4);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float send = j & 2 ? score[i] : score[i + 2], keep = j & 2 ? score[i + 2] : score[i];
      score[i] = keep + __shfl_xor_sync(~0u, send, 2);
    }
    {
      float send = j & 1 ? score[0] : score[1], keep = j & 1 ? score[1] : score[0];
      score[0] = keep + __shfl_xor_sync(~0u, send, 1);
    }
    const float s = seen ? score[0] * key_scale : LOW;
    float most = s;
#pragma unroll
    for (int o = 4; o; o >>= 1) most = fmaxf(most, __shfl_xor_sync(~0u, most, o));
    const float higher = fmaxf(top, most), kept = exp2f(top - higher);
    float p = seen ? exp2f(s - higher) : 0.f;
    top = higher;
    weight = weight * kept + p; // of this lane's keys: lanes are joined at the end
    p = seen ? p * value_scale : 0.f;
#pragma unroll
    for (int i = 0; i < 16; i++) sum[i] *= kept;
#pragma unroll
    for (int u = 0; u < KEYS; u++) {
      float f[16], share = __shfl_sync(~0u, p, (lane & 24) | u);
      sixteen(v[u], f);
#pragma unroll
      for (int i = 0; i < 16; i++) sum[i] += share * f[i];
    }
  }
#pragma unroll
  for (int o = 4; o; o >>= 1) weight += __shfl_xor_sync(~0u, weight, o);
#pragma unroll
  for (int o = 8; o < 32; o <<= 1) { // the four groups of a warp
    float t = __shfl_xor_sync(~0u, top, o), w = __shfl_xor_sync(~0u, weight, o);
    float higher = fmaxf(top, t), a = exp2f(top - higher), b = exp2f(t - higher);
    weight = weight * a + w * b;
    top = higher;
#pragma unroll
    for (int i = 0; i < 16; i++) sum[i] = sum[i] * a + __shfl_xor_sync(~0u, sum[i], o) * b;
  }
  if (group == 0)
#pragma unroll
    for (int i = 0; i < 16; i++) sums[warp][j * 16 + i] = sum[i];
  if (lane == 0) tops[warp] = top, weights[warp] = weight;
  __syncthreads();
  float higher = fmaxf(fmaxf(fmaxf(tops[0], tops[1]), fmaxf(tops[2], tops[3])), own_score);
  float own_share = own ? exp2f(own_score - higher) : 0.f;
  float w = own_share, y = own_share * own_value;
#pragma unroll
  for (int i = 0; i < WARPS; i++) {
    float a = exp2f(tops[i] - higher);
    w += weights[i] * a;
    y += sums[i][tid] * a;
  }
  if (used == 1) {
    out[tid] = to_bf16(y / w);
    return;
  }

  const i64 at = (i64)which * splits;
  part[(at + split) * D + tid] = y;
  if (tid == 0) stat[(at + split) * 2] = higher, stat[(at + split) * 2 + 1] = w;
  __threadfence();
  __syncthreads();
  if (tid == 0) {
    is_last = atomicAdd(arrived + which, 1) == used - 1;
    if (is_last) arrived[which] = 0;
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  float best = LOW;
  for (int i = 0; i < used; i++) best = fmaxf(best, __ldcg(stat + (at + i) * 2));
  w = y = 0;
  for (int i = 0; i < used; i++) {
    float a = exp2f(__ldcg(stat + (at + i) * 2) - best);
    w += a * __ldcg(stat + (at + i) * 2 + 1);
    y += a * __ldcg(part + (at + i) * D + tid);
  }
  out[tid] = to_bf16(y / w);
}
