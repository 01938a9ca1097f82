// The depformer of one frame as one launch: 8 steps of 6 layers, each step's pick, all slots.
//
// 128 blocks of 512 threads stay on the device until the frame is done and meet at a barrier
// between two phases (256 times). What a phase multiplies is read from memory while the phase
// before it still waits: that, and no launches in between, is what is gained. Weights are bf16, or
// int8 with a float32 scale for every output; sums are float32; every number that the plain modules
// round to bf16 is rounded here.
//
// Phases of a layer: qkv; attention; out; gate and up; down. Then logits and pick. A product's
// outputs are dealt out by eights: to groups of 4 warps (qkv, gate), 8 (logits) or 16 (out, down),
// which share the inputs of an output. Slots are rows of a matrix instruction, 16 at most: a slot's
// bits depend on no other and on no number of slots.
//
// The oracle is Depformer of lm.py, and the launches of fused.py where a device is too small.

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned long long u64;
typedef long long i64;

constexpr int D = 1024, HIDDEN = 2816, LAYERS = 6, STEPS = 8, CARD = 2048, HEADS = 16, WIDTH = 64;
constexpr int BLOCKS = 128, THREADS = 512, WARPS = THREADS / 32;
constexpr int ROWS = 16;        // of a matrix instruction: the most slots
constexpr int MOST_ROWS = 8;    // outputs of a group
constexpr int PITCH = D + 32;   // of a row in shared memory: rows lie in other banks
constexpr float EPS = 1e-8f;
constexpr int PRODUCTS = STEPS * LAYERS * 4 + STEPS; // qkv, out, gate, down of each; then logits

// -- numbers --------------------------------------------------------------------------------------

__device__ __forceinline__ float low(u32 v) { return __uint_as_float(v << 16); }
__device__ __forceinline__ float high(u32 v) { return __uint_as_float(v & 0xffff0000u); }
__device__ __forceinline__ u32 pack(float a, float b) { // two bf16, a in the low half
  u32 r;
  asm("cvt.rn.bf16x2.f32 %0, %2, %1;" : "=r"(r) : "f"(a), "f"(b));
  return r;
}
__device__ __forceinline__ u16 to_bf16(float a) { return (u16)(pack(a, 0.f) & 0xffffu); }
__device__ __forceinline__ float rounded(float a) { return low(pack(a, 0.f)); }

// Four int8, two and two, as bf16: 0x43 before a byte is 128 + its low seven bits; from it 128 is
// taken, or 256 where the sign bit stands, which makes 0x4300 to 0x4380.
__device__ __forceinline__ u32 two_int8(u32 bytes, u32 order) {
  u32 r = __byte_perm(bytes, 0x43434343u, order), x = r & 0xff7fff7fu, y = r & 0xff80ff80u, out;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(y), "r"(0xbf80bf80u), "r"(x)); // x - y
  return out;
}

// -- memory: weights pass by the caches, what other blocks write is read from L2 ------------------

__device__ __forceinline__ uint4 load_weights(const char* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}
__device__ __forceinline__ uint4 load_shared_by_all(const void* p) {
  uint4 v;
  asm volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}
__device__ __forceinline__ u32 load_pair(const void* p) {
  u32 v;
  asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(v) : "l"(p));
  return v;
}
__device__ __forceinline__ float load_bf16(const u16* p) {
  u16 v;
  asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(v) : "l"(p));
  return __uint_as_float((u32)v << 16);
}
__device__ __forceinline__ int load_int(const int* p) {
  int v;
  asm volatile("ld.global.cg.s32 %0, [%1];" : "=r"(v) : "l"(p));
  return v;
}
__device__ __forceinline__ u64 load_u64(const u64* p) {
  u64 v;
  asm volatile("ld.global.cg.u64 %0, [%1];" : "=l"(v) : "l"(p));
  return v;
}

// -- meeting --------------------------------------------------------------------------------------

__device__ __forceinline__ void meet_all(u32* arrivals, u32& goal) { // all blocks
  goal += BLOCKS;
  __syncthreads();
  if (threadIdx.x == 0) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(arrivals) : "memory");
    u32 v;
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(arrivals) : "memory");
    } while (v < goal);
  }
  __syncthreads();
}
__device__ __forceinline__ void meet_group(int group, int threads) { // some warps of a block
  asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "r"(threads) : "memory");
}

// -- products -------------------------------------------------------------------------------------
//
// A lane (g = lane / 4, t = lane % 4) holds 16 bytes of output g's weights at a time: 8 bf16 of 32
// inputs or 16 int8 of 64. Which inputs a lane of a matrix instruction multiplies is free, as long
// as both sides agree, so weights are used as they lie.

__device__ __forceinline__ void multiply(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0,
                                         u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
               "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

template <bool INT8> struct Form {
  static constexpr int BYTES = INT8 ? 1 : 2;
  static constexpr int CHUNK = 64 / BYTES;      // inputs of 4 lanes' 16 bytes
  static constexpr int PARTS = INT8 ? 2 : 1;    // 16-byte parts of a row's inputs for a lane
  __device__ static constexpr int turns(int inputs) { return inputs / CHUNK; }
};

// N chunks of a lane's weights; those beyond `wanted` are zero and are not read.
template <int N> __device__ __forceinline__ void fetch(uint4 (&w)[N], const char* p, int wanted) {
#pragma unroll
  for (int i = 0; i < N; i++) {
    w[i] = make_uint4(0, 0, 0, 0);
    if (i < wanted) w[i] = load_weights(p + 64 * i);
  }
}

// One chunk: rows' inputs a (row g) and b (row g + 8), each PARTS x 16 bytes, times the weights.
template <bool INT8>
__device__ __forceinline__ void chunk(float (&c)[4], const uint4* a, const uint4* b, const uint4& w) {
  if constexpr (INT8) {
    multiply(c, a[0].x, b[0].x, a[0].y, b[0].y, two_int8(w.x, 0x4140), two_int8(w.x, 0x4342));
    multiply(c, a[0].z, b[0].z, a[0].w, b[0].w, two_int8(w.y, 0x4140), two_int8(w.y, 0x4342));
    multiply(c, a[1].x, b[1].x, a[1].y, b[1].y, two_int8(w.z, 0x4140), two_int8(w.z, 0x4342));
    multiply(c, a[1].z, b[1].z, a[1].w, b[1].w, two_int8(w.w, 0x4140), two_int8(w.w, 0x4342));
  } else {
    multiply(c, a[0].x, b[0].x, a[0].y, b[0].y, w.x, w.y);
    multiply(c, a[0].z, b[0].z, a[0].w, b[0].w, w.z, w.w);
  }
}

// Where a row's 8-number part lies in shared memory: int8 lanes read parts 2t and 2t + 1, which are
// put four apart, so that eight lanes never meet in a bank.
template <bool INT8> __device__ __forceinline__ int place(int part) {
  return INT8 ? (part & ~7) | (part & 1) << 2 | (part & 7) >> 1 : part;
}

struct Frame {
  const i64* addresses; // see `Addresses`
  const u16* inputs;    // [slots, STEPS, D] bf16
  const i64* text;      // [slots], `text_slot` apart
  const float* noise;   // [slots, STEPS, CARD] by rank, rows `noise_slot` and `noise_step` apart
  const float* heat;    // [slots] temperature
  const i64* most;      // [slots] how many are kept; 0: the greatest
  const i64* given;     // [slots, STEPS]; -1: picked
  u16 *x, *qkv, *heard, *act; // scratch: [slots, D], [LAYERS, STEPS, slots, 3 D], [slots, D], [slots, HIDDEN]
  int* keys;                  // [slots, CARD]: logits as integers that sort like them
  u64* best;                  // [slots, parts]
  i64* codes;                 // [slots, STEPS]
  u32* arrivals;              // [2] zeros, before and after
  i64 slots, text_slot, noise_slot, noise_step;
};

// The addresses that a frame needs, kept in shared memory from its start.
struct Addresses {
  i64 weight[PRODUCTS], scale[PRODUCTS], table[STEPS], norm[2 * LAYERS];
  __device__ const char* product(int step, int layer, int which) const {
    return (const char*)weight[(step * LAYERS + layer) * 4 + which];
  }
  __device__ const char* logits(int step) const {
    return (const char*)weight[STEPS * LAYERS * 4 + step];
  }
  __device__ float scale_of(int product, int output) const {
    return ((const float*)scale[product])[output];
  }
};

struct Shared {
  Addresses at;
  float first[WARPS][ROWS][MOST_ROWS], second[WARPS][ROWS][MOST_ROWS]; // sums of warps
  float squares[ROWS][4];
  u64 best[WARPS];
  int tokens[ROWS];
  __align__(16) u16 x[ROWS * PITCH]; // rows, normed; in a pick: the keys of a slot
};

__device__ __forceinline__ u64 greater(u64 a, u64 b) { return a > b ? a : b; }
__device__ __forceinline__ u64 warp_best(u64 m) {
#pragma unroll
  for (int o = 16; o; o >>= 1) m = greater(m, __shfl_xor_sync(~0u, m, o));
  return m;
}
__device__ __forceinline__ int parts_of(int slots) { // blocks that rank one slot's logits
  int parts = BLOCKS;
  while (parts * slots > BLOCKS) parts >>= 1;
  return parts;
}
// Float bits as integers that sort like the floats; its own inverse.
__device__ __forceinline__ int order(int bits) { return bits < 0 ? bits ^ 0x7fffffff : bits; }

template <bool INT8, bool WIDE> struct Depth { // WIDE: more than 8 slots
  using F = Form<INT8>;
  static constexpr int QKV = F::turns(D / 4), OUT = F::turns(D / 16), LOGITS = F::turns(D / 8);
  static constexpr int DOWN = (F::turns(HIDDEN) + 15) / 16;
  static constexpr int BATCH = 4 / F::PARTS, DOWN_BATCH = 6 / F::PARTS; // chunks asked for at once

  const Frame& f;
  Shared& s;
  const int tid, warp, lane, g, t, block, slots;
  u32 goal = 0;

  __device__ Depth(const Frame& f, Shared& s)
      : f(f), s(s), tid(threadIdx.x), warp(tid >> 5), lane(tid & 31), g(lane >> 2), t(lane & 3),
        block(blockIdx.x), slots((int)f.slots) {}

  // This lane's weights of an output, from an input on.
  __device__ const char* at(const char* weight, int output, int inputs, int from) const {
    return weight + ((i64)(output + g) * inputs + from) * F::BYTES + 16 * t;
  }

  // This lane's inputs for one chunk, from shared memory or from what all blocks share.
  __device__ void take(uint4* a, uint4* b, int input) const {
#pragma unroll
    for (int i = 0; i < F::PARTS; i++) {
      const u16* p = s.x + place<INT8>(input / 8 + F::PARTS * t + i) * 8;
      a[i] = *(const uint4*)(p + g * PITCH);
      b[i] = WIDE ? *(const uint4*)(p + (g + 8) * PITCH) : make_uint4(0, 0, 0, 0);
    }
  }
  __device__ void take_from(uint4* a, uint4* b, const u16* x, int width, int input) const {
#pragma unroll
    for (int i = 0; i < F::PARTS; i++) {
      const u16* p = x + input + (F::PARTS * t + i) * 8;
      a[i] = b[i] = make_uint4(0, 0, 0, 0);
      if (g < slots) a[i] = load_shared_by_all(p + g * width);
      if (WIDE && g + 8 < slots) b[i] = load_shared_by_all(p + (g + 8) * width);
    }
  }

  __device__ void keep(float (&sums)[WARPS][ROWS][MOST_ROWS], const float (&c)[4]) {
    sums[warp][g][2 * t] = c[0], sums[warp][g][2 * t + 1] = c[1];
    if (WIDE) sums[warp][g + 8][2 * t] = c[2], sums[warp][g + 8][2 * t + 1] = c[3];
  }
  template <int COUNT>
  __device__ float total(const float (&sums)[WARPS][ROWS][MOST_ROWS], int first, int row,
                         int output) const {
    float y = 0;
#pragma unroll
    for (int w = 0; w < COUNT; w++) y += sums[first + w][row][output];
    return y;
  }
  // An output's scale, asked for with its weights.
  __device__ float scale(int product, int output, bool wanted) const {
    return INT8 && wanted ? s.at.scale_of(product, output) : 1.f;
  }
  __device__ float scaled(float y, float by) const { return INT8 ? y * by : y; }

  // All rows, normed, into shared memory. `step` >= 0: they begin a step, and are its input and the
  // entry of the token before it; block 0 leaves their sum for all.
  __device__ void stage(int norm, int step) {
    const int part = tid & 127;
    const u16* alpha = (const u16*)s.at.norm[norm];
    const uint4 weight = *(const uint4*)(alpha + part * 8);
    constexpr int TURNS = WIDE ? 4 : 2;
    uint4 v[TURNS];
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
      const int slot = (tid >> 7) + 4 * i;
      if (slot >= slots) continue;
      if (step < 0) {
        v[i] = load_shared_by_all(f.x + slot * D + part * 8);
      } else {
        const u16* entry = (const u16*)s.at.table[step] + (i64)s.tokens[slot] * D;
        uint4 a = *(const uint4*)(f.inputs + (slot * STEPS + step) * D + part * 8);
        uint4 b = *(const uint4*)(entry + part * 8);
        v[i] = make_uint4(pack(low(a.x) + low(b.x), high(a.x) + high(b.x)),
                          pack(low(a.y) + low(b.y), high(a.y) + high(b.y)),
                          pack(low(a.z) + low(b.z), high(a.z) + high(b.z)),
                          pack(low(a.w) + low(b.w), high(a.w) + high(b.w)));
        if (block == 0) *(uint4*)(f.x + slot * D + part * 8) = v[i];
      }
      float q = 0;
      const u32 words[4] = {v[i].x, v[i].y, v[i].z, v[i].w};
#pragma unroll
      for (int j = 0; j < 4; j++) q += low(words[j]) * low(words[j]) + high(words[j]) * high(words[j]);
#pragma unroll
      for (int o = 16; o; o >>= 1) q += __shfl_xor_sync(~0u, q, o);
      if (lane == 0) s.squares[slot][warp & 3] = q;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
      const int slot = (tid >> 7) + 4 * i;
      if (slot >= slots) continue;
      const float* q = s.squares[slot];
      const float r = 1.f / sqrtf(((q[0] + q[1]) + (q[2] + q[3])) / D + EPS);
      u32 words[4] = {v[i].x, v[i].y, v[i].z, v[i].w};
      const u32 by[4] = {weight.x, weight.y, weight.z, weight.w};
#pragma unroll
      for (int j = 0; j < 4; j++)
        words[j] = pack(low(words[j]) * r * low(by[j]), high(words[j]) * r * high(by[j]));
      *(uint4*)(s.x + slot * PITCH + place<INT8>(part) * 8) =
          make_uint4(words[0], words[1], words[2], words[3]);
    }
    __syncthreads();
  }

  __device__ void decide(int step); // the token of every slot, after a pick
  __device__ u32 attend(int step, int layer, int slot, int head);
  __device__ void pick(int step);
  __device__ void run();
};

// One query of one head over the columns of the steps so far: a lane has two of its 64 numbers.
template <bool INT8, bool WIDE>
__device__ __forceinline__ u32 Depth<INT8, WIDE>::attend(int step, int layer, int slot, int head) {
  const i64 column = (i64)slots * 3 * D; // from one step's to the next's
  const u16* base = f.qkv + ((i64)layer * STEPS * slots + slot) * 3 * D + head * WIDTH + 2 * lane;
  const u32 q = load_pair(base + step * column);
  u32 k[STEPS], v[STEPS];
#pragma unroll
  for (int j = 0; j < STEPS; j++)
    if (j <= step) k[j] = load_pair(base + j * column + D), v[j] = load_pair(base + j * column + 2 * D);
  float score[STEPS], top = -1e30f, weight = 0, y0 = 0, y1 = 0;
#pragma unroll
  for (int j = 0; j < STEPS; j++)
    if (j <= step) {
      float d = low(q) * low(k[j]) + high(q) * high(k[j]);
#pragma unroll
      for (int o = 16; o; o >>= 1) d += __shfl_xor_sync(~0u, d, o);
      score[j] = d * 0.125f; // 64 ** -0.5
      top = fmaxf(top, score[j]);
    }
#pragma unroll
  for (int j = 0; j < STEPS; j++)
    if (j <= step) {
      float e = __expf(score[j] - top);
      weight += e, y0 += e * low(v[j]), y1 += e * high(v[j]);
    }
  return pack(y0 / weight, y1 / weight);
}

// Rank by counting, then the race of the first `most`: greatest chance / noise[rank], of equals the
// first in rank. `parts` blocks share a slot.
template <bool INT8, bool WIDE>
__device__ __forceinline__ void Depth<INT8, WIDE>::pick(int step) {
  const int parts = parts_of(slots), own = CARD / parts, slot = block / parts;
  if (slot >= slots) return;
  const int begin = block % parts * own;
  int* keys = (int*)s.x;
  int most_key = 0x80000000;
  for (int i = tid; i < CARD; i += THREADS) {
    const int key = load_int(f.keys + slot * CARD + i);
    keys[i] = key;
    most_key = max(most_key, key);
  }
#pragma unroll
  for (int o = 16; o; o >>= 1) most_key = max(most_key, __shfl_xor_sync(~0u, most_key, o));
  if (lane == 0) s.best[warp] = (u64)(u32)most_key;
  __syncthreads();
  for (int w = 0; w < WARPS; w++) most_key = max(most_key, (int)(u32)s.best[w]);
  const float top = __uint_as_float(order(most_key)), heat = f.heat[slot];
  const int most = (int)max(min(f.most[slot], (i64)CARD), (i64)1);
  const float* noise = f.noise + slot * f.noise_slot + step * f.noise_step;
  const int each = own >= THREADS ? 1 : THREADS / own; // threads that count for one entry
  u64 mine = 0;
  for (int i = tid / each; i < own; i += THREADS / each) {
    const int index = begin + i, key = keys[index];
    int rank = 0;
    for (int other = tid % each; other < CARD; other += each) {
      const int k = keys[other];
      rank += k > key || (k == key && other < index);
    }
    for (int o = each / 2; o; o >>= 1) rank += __shfl_xor_sync(~0u, rank, o);
    if (rank < most) {
      float chance = __expf((__uint_as_float(order(key)) - top) / heat) / noise[rank];
      if (!(chance >= 0)) chance = 0; // a NaN has none; if all are, the first in rank wins
      mine = greater(mine, (u64)__float_as_uint(chance) << 32 | (u32)(CARD - 1 - rank) << 16 | index);
    }
  }
  mine = warp_best(mine);
  __syncthreads(); // the greatest key is read
  if (lane == 0) s.best[warp] = mine;
  __syncthreads();
  if (tid == 0) {
    for (int w = 0; w < WARPS; w++) mine = greater(mine, s.best[w]);
    f.best[slot * parts + block % parts] = mine;
  }
}

template <bool INT8, bool WIDE>
__device__ __forceinline__ void Depth<INT8, WIDE>::decide(int step) {
  const int parts = parts_of(slots);
  for (int slot = warp; slot < slots; slot += WARPS) {
    u64 m = 0;
    for (int i = lane; i < parts; i += 32) m = greater(m, load_u64(f.best + slot * parts + i));
    m = warp_best(m);
    const i64 given = f.given[slot * STEPS + step];
    const int token = given < 0 ? (int)(m & 0xffff) : (int)given;
    if (lane == 0) {
      s.tokens[slot] = token;
      if (block == 0) f.codes[slot * STEPS + step] = token;
    }
  }
  __syncthreads();
}

template <bool INT8, bool WIDE>
__device__ __forceinline__ void Depth<INT8, WIDE>::run() {
  for (int i = tid; i < (int)(sizeof(Addresses) / sizeof(i64)); i += THREADS)
    ((i64*)&s.at)[i] = f.addresses[i];
  if (tid < slots) s.tokens[tid] = (int)max(f.text[tid * f.text_slot], (i64)0);
  __syncthreads();

  const int group = warp >> 2, by4 = warp & 3, item = group * BLOCKS + block; // of 8 outputs
  const int half = warp >> 3, by8 = warp & 7, item8 = half * BLOCKS + block;
  const bool has_qkv = item < 3 * D / 8, has_gate = item < HIDDEN / 8;
  constexpr int ALL = F::turns(HIDDEN), EXTRA = ALL % WARPS; // chunks of `down`
  const int down = ALL / WARPS + (warp < EXTRA);
  const int down_from = (warp * (ALL / WARPS) + min(warp, EXTRA)) * F::CHUNK;
  // Of a product whose outputs a group of 4 warps has, and of one that all warps share.
  const int row4 = (tid & 127) >> 3, row8 = (tid & 255) >> 3, row = tid >> 3, of8 = tid & 7;
  const int output = block * 8 + of8;

  uint4 wq[QKV], wo[OUT], wg[QKV], wu[QKV], wd[DOWN], wl[LOGITS];
  fetch(wq, at(s.at.product(0, 0, 0), item * 8, D, by4 * (D / 4)), has_qkv ? QKV : 0);
  float sq = scale(0, item * 8 + of8, has_qkv), so, sg, su, sd, sl = 1.f;
#pragma unroll 1
  for (int step = 0; step < STEPS; step++) {
#pragma unroll 1
    for (int layer = 0; layer < LAYERS; layer++) {
      const int product = (step * LAYERS + layer) * 4;
      if (step || layer) meet_all(f.arrivals, goal);
      if (step && !layer) decide(step - 1);

      stage(2 * layer, layer ? -1 : step); // qkv
      if (has_qkv) {
        float c[4] = {0, 0, 0, 0};
#pragma unroll
        for (int i = 0; i < QKV; i += BATCH) {
          uint4 a[BATCH][F::PARTS], b[BATCH][F::PARTS];
#pragma unroll
          for (int n = 0; n < BATCH; n++) take(a[n], b[n], by4 * (D / 4) + (i + n) * F::CHUNK);
#pragma unroll
          for (int n = 0; n < BATCH; n++) chunk<INT8>(c, a[n], b[n], wq[i + n]);
        }
        keep(s.first, c);
      }
      fetch(wo, at(s.at.product(step, layer, 1), block * 8, D, warp * (D / 16)), OUT);
      so = scale(product + 1, output, true);
      if (has_qkv) {
        meet_group(group, 128);
        if (row4 < slots) {
          const float y = scaled(total<4>(s.first, group * 4, row4, of8), sq);
          f.qkv[((i64)(layer * STEPS + step) * slots + row4) * 3 * D + item * 8 + of8] = to_bf16(y);
        }
      }
      meet_all(f.arrivals, goal);

      const bool alone = slots <= 2; // then each block attends for itself: a meeting less
      if (alone) {
        for (int slot = 0; slot < slots; slot++) // a warp's head is what it multiplies next
          *(u32*)(s.x + slot * PITCH + place<INT8>(warp * 8 + lane / 4) * 8 + lane % 4 * 2) =
              attend(step, layer, slot, warp);
        __syncwarp();
      } else {
        if (const int pair = warp * BLOCKS + block; pair < slots * HEADS) {
          const int slot = pair / HEADS, head = pair % HEADS;
          *(u32*)(f.heard + slot * D + head * WIDTH + 2 * lane) = attend(step, layer, slot, head);
        }
        meet_all(f.arrivals, goal);
      }

      { // out
        u16* x = f.x + row * D + output;
        const float before = row < slots ? load_bf16(x) : 0.f;
        float c[4] = {0, 0, 0, 0};
#pragma unroll
        for (int i = 0; i < OUT; i++) {
          uint4 a[F::PARTS], b[F::PARTS];
          if (alone) take(a, b, warp * (D / 16) + i * F::CHUNK);
          else take_from(a, b, f.heard, D, warp * (D / 16) + i * F::CHUNK);
          chunk<INT8>(c, a, b, wo[i]);
        }
        keep(s.first, c);
        const char* gate = s.at.product(step, layer, 2);
        fetch(wg, at(gate, item * 8, D, by4 * (D / 4)), has_gate ? QKV : 0);
        fetch(wu, at(gate, HIDDEN + item * 8, D, by4 * (D / 4)), has_gate ? QKV : 0);
        sg = scale(product + 2, item * 8 + of8, has_gate);
        su = scale(product + 2, HIDDEN + item * 8 + of8, has_gate);
        __syncthreads();
        if (row < slots)
          *x = to_bf16(before + rounded(scaled(total<WARPS>(s.first, 0, row, of8), so)));
      }
      meet_all(f.arrivals, goal);

      stage(2 * layer + 1, -1); // gate and up
      if (has_gate) {
        float c[4] = {0, 0, 0, 0}, e[4] = {0, 0, 0, 0};
#pragma unroll
        for (int i = 0; i < QKV; i += BATCH) {
          uint4 a[BATCH][F::PARTS], b[BATCH][F::PARTS];
#pragma unroll
          for (int n = 0; n < BATCH; n++) take(a[n], b[n], by4 * (D / 4) + (i + n) * F::CHUNK);
#pragma unroll
          for (int n = 0; n < BATCH; n++) {
            chunk<INT8>(c, a[n], b[n], wg[i + n]);
            chunk<INT8>(e, a[n], b[n], wu[i + n]);
          }
        }
        keep(s.first, c);
        keep(s.second, e);
      }
      fetch(wd, at(s.at.product(step, layer, 3), block * 8, HIDDEN, down_from), down);
      sd = scale(product + 3, output, true);
      if (has_gate) {
        meet_group(group, 128);
        if (row4 < slots) {
          const int o = item * 8 + of8;
          float y = rounded(scaled(total<4>(s.first, group * 4, row4, of8), sg));
          const float up = rounded(scaled(total<4>(s.second, group * 4, row4, of8), su));
          y = rounded(y / (1.f + __expf(-y)));
          f.act[row4 * HIDDEN + o] = to_bf16(y * up);
        }
      }
      meet_all(f.arrivals, goal);

      { // down
        u16* x = f.x + row * D + output;
        const float before = row < slots ? load_bf16(x) : 0.f;
        float c[4] = {0, 0, 0, 0};
#pragma unroll
        for (int i = 0; i < DOWN; i += DOWN_BATCH) {
          uint4 a[DOWN_BATCH][F::PARTS], b[DOWN_BATCH][F::PARTS];
#pragma unroll
          for (int n = 0; n < DOWN_BATCH; n++)
            if (i + n < down) take_from(a[n], b[n], f.act, HIDDEN, down_from + (i + n) * F::CHUNK);
#pragma unroll
          for (int n = 0; n < DOWN_BATCH; n++)
            if (i + n < down) chunk<INT8>(c, a[n], b[n], wd[i + n]);
        }
        keep(s.first, c);
        const bool more = layer + 1 < LAYERS;
        fetch(wq, at(s.at.product(step, layer + more, 0), item * 8, D, by4 * (D / 4)),
              more && has_qkv ? QKV : 0);
        fetch(wl, at(s.at.logits(step), item8 * 8, D, by8 * (D / 8)), more ? 0 : LOGITS);
        sq = scale(product + 4, item * 8 + of8, more && has_qkv);
        sl = scale(STEPS * LAYERS * 4 + step, item8 * 8 + of8, !more);
        __syncthreads();
        if (row < slots)
          *x = to_bf16(before + rounded(scaled(total<WARPS>(s.first, 0, row, of8), sd)));
      }
    }
    meet_all(f.arrivals, goal);

    { // logits
      float c[4] = {0, 0, 0, 0};
#pragma unroll
      for (int i = 0; i < LOGITS; i++) {
        uint4 a[F::PARTS], b[F::PARTS];
        take_from(a, b, f.x, D, by8 * (D / 8) + i * F::CHUNK);
        chunk<INT8>(c, a, b, wl[i]);
      }
      keep(s.first, c);
      const bool more = step + 1 < STEPS;
      fetch(wq, at(s.at.product(step + more, 0, 0), item * 8, D, by4 * (D / 4)),
            more && has_qkv ? QKV : 0);
      sq = scale((step + 1) * LAYERS * 4, item * 8 + of8, more && has_qkv);
      meet_group(half, 256);
      if (row8 < slots) {
        const int o = item8 * 8 + of8;
        const float y = scaled(total<8>(s.first, half * 8, row8, of8), sl);
        f.keys[row8 * CARD + o] = order(__float_as_int(rounded(y)));
      }
    }
    meet_all(f.arrivals, goal);
    pick(step);
  }
  meet_all(f.arrivals, goal);
  if (block == 0) decide(STEPS - 1);
  if (tid == 0 && atomicAdd(f.arrivals + 1, 1) == BLOCKS - 1) f.arrivals[0] = f.arrivals[1] = 0;
}

extern __shared__ __align__(128) unsigned char memory[];
static_assert(sizeof(Shared) <= 56 << 10, "more than depth.py asks for");
#define GIVEN                                                                                     \
  const i64 *addresses, const u16 *inputs, const i64 *text, const float *noise, const float *heat, \
      const i64 *most, const i64 *given, u16 *x, u16 *qkv, u16 *heard, u16 *act, int *keys,        \
      u64 *best, i64 *codes, u32 *arrivals, i64 slots, i64 text_slot, i64 noise_slot, i64 noise_step
#define FRAME                                                                                     \
  {addresses, inputs, text, noise, heat, most, given, x, qkv, heard, act, keys, best, codes,       \
   arrivals, slots, text_slot, noise_slot, noise_step}
extern "C" __global__ void __launch_bounds__(THREADS, 1) depth_bf16(GIVEN) {
  const Frame f = FRAME;
  if (slots > 8) Depth<false, true>(f, *(Shared*)memory).run();
  else Depth<false, false>(f, *(Shared*)memory).run();
}
extern "C" __global__ void __launch_bounds__(THREADS, 1) depth_int8(GIVEN) {
  const Frame f = FRAME;
  if (slots > 8) Depth<true, true>(f, *(Shared*)memory).run();
  else Depth<true, false>(f, *(Shared*)memory).run();
}
