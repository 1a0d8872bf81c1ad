/* What forms are made of: a register is an array of 32 lanes, an instruction a loop over them. */
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef uint8_t u8; typedef uint16_t u16; typedef uint32_t u32; typedef uint64_t u64;
typedef int8_t s8; typedef int16_t s16; typedef int32_t s32; typedef int64_t s64;
#define LANES _Pragma("GCC ivdep") for (int l = 0; l < 32; l++)

typedef struct { u64 low, high; u8 *written; } Span; /* written: a byte for each byte, or null where all are */
enum { OUTSIDE = 1, MISALIGNED, UNWRITTEN, DIVERGENT };
typedef struct {
  u64 spans; const Span *span;
  u64 kind, line, lane, address, store; /* of the first error */
  u64 executed[8], requests, sectors, fewest, read, wrote;
} Device;
typedef struct Op Op;
struct Op { const Op *(*run)(Device *, const Op *); const Op *to; u64 line, of; void *a[12]; };

static inline float f_(u32 x) { float f; memcpy(&f, &x, 4); return f; }
static inline u32 u_(float f) { u32 x; memcpy(&x, &f, 4); return x; }
static inline float ftz(float x) { return fabsf(x) < 1.17549435e-38f ? copysignf(0.f, x) : x; }
static inline float max_(float a, float b) { return a != a ? b : b != b ? a : a > b ? a : a == b ? (signbit(a) ? b : a) : b; }
static inline float min_(float a, float b) { return a != a ? b : b != b ? a : a < b ? a : a == b ? (signbit(a) ? a : b) : b; }
static inline u32 bf16(float f) { u32 x = u_(f); return f != f ? 0x7fff : (x + 0x7fff + ((x >> 16) & 1)) >> 16; }
static inline u32 f16(float f) { _Float16 h = (_Float16)f; u16 x; memcpy(&x, &h, 2); return x; }
static inline float from_f16(u32 x) { u16 y = (u16)x; _Float16 h; memcpy(&h, &y, 2); return (float)h; }
static inline float from_bf16(u32 x) { return f_(x << 16); }

/* 2^x to about 1e-9: the device's own is good to 2 ulp */
static inline float ex2(float y) {
  double x = y > 130.f ? 130.0 : y < -155.f ? -155.0 : y, n = nearbyint(x), f = x - n, p = 1.0178086e-7;
  static const double c[8] = {1.3215487e-6, 1.5252734e-5, 1.5403530e-4, 1.33335581e-3, 9.6181291e-3, 5.55041087e-2, 0.240226507,
                              0.693147181};
  for (int i = 0; i < 8; i++) p = p * f + c[i];
  s64 bits = ((s64)(n != n ? 0 : n) + 1023) << 52;
  double scale; memcpy(&scale, &bits, 8);
  return (float)((p * f + 1.0) * scale);
}

static const Op *fail(Device *d, u64 kind, u64 line, u64 lane, u64 address, u64 store) {
  d->kind = kind; d->line = line; d->lane = lane; d->address = address; d->store = store;
  return 0;
}

/* One request of a warp: `parts` elements of `size` bytes a lane, aligned to all of them, inside one tensor, written before. */
__attribute__((noinline)) static u64 request(Device *d, const u64 *address, const u32 *on, u32 parts, u32 size, u64 store, u64 line) {
  u32 bytes = parts * size, any = 0, sectors = 0, distinct = 0;
  u64 last = ~0ull, sector = ~0ull;
  const Span *s = d->span;
  LANES {
    if (!on[l]) continue;
    u64 a = address[l];
    if (a % bytes) return fail(d, MISALIGNED, line, l, a, store), d->kind;
    if (a < s->low || a + bytes > s->high) {
      for (s = d->span; s < d->span + d->spans && (a < s->low || a + bytes > s->high); s++);
      if (s == d->span + d->spans) return fail(d, OUTSIDE, line, l, a, store), d->kind;
    }
    if (s->written) {
      u8 *w = s->written + (a - s->low);
      if (store) memset(w, 1, bytes);
      else for (u32 i = 0; i < bytes; i += size) {
        u32 missing = 0, poison = 1;
        for (u32 k = i; k < i + size; k++) { missing |= !w[k]; poison &= ((const u8 *)a)[k] == 255; }
        if (missing && poison) return fail(d, UNWRITTEN, line, l, a, store), d->kind;
      }
    }
    any = 1;
    if (a != last) distinct++;
    if (a >> 5 != sector) sectors++;
    last = a; sector = a >> 5;
  }
  if (!any) return 0;
  d->requests++; d->sectors += sectors; d->fewest += (distinct * bytes + 31) / 32;
  *(store ? &d->wrote : &d->read) += distinct * bytes;
  return 0;
}

#define LOAD(T, r, a, offset) LANES if (on[l]) (r)[l] = *(const T *)((a)[l] + (offset))
#define STORE(T, r, a, offset) LANES if (on[l]) *(T *)((a)[l] + (offset)) = (T)(r)
/* 0 or 1 where all lanes agree, else 2 */
static inline u32 agree(const u32 *p) { u32 sum = 0; LANES sum += p[l] & 1; return sum == 0 ? 0 : sum == 32 ? 1 : 2; }
