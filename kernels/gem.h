/* gem.h: the only place where OpenCL C and CUDA C++ differ.
 *
 * A kernel is plain C99 written with the words below; everything else it needs is a #define of its program:
 *
 *   GEM_REAL   32 or 64: `real` is float or double
 *   GEM_SUMS   32 or 64: `acc` is float or double (64 wherever the device has it)
 *   ATOMICS    1: the device adds 64-bit integers atomically
 *   GROUP      work-items in a work-group
 *   TILE       data points that a work-group takes: group g has the points g TILE ... g TILE + TILE - 1
 *   WIDTH      lanes: one text for CPUs and GPUs, below. CPU devices (OpenCL only): the 4, 8, 16 elements of a vector,
 *              and GROUP is 1. GPUs: the 32 work-items of a warp (if a twin says so, GROUP of them).
 *              1 (GPUs): a kernel without these words; the lanes of a data point are GROUP / TILE work-items.
 *
 * ONE TEXT FOR VECTORS AND WARPS. A kernel whose twin's module says LANES = 32 is written for WIDTH lanes that run in
 * step; the elements of a vector do so anyway, the lanes of a warp as the text branches only where all lanes agree.
 *
 *   WARP, WARPS       the number of these WIDTH lanes among all, and how many such there are
 *   vec, ivec, accs   a number in each lane: real, int (of a CPU: as wide as real), acc
 *   lanes             the same, and its elements by number: x.v is the vec; AT(x, r) is lane r's, for all lanes to
 *                     read, SET(x, r, value) gives lane r another one
 *   NUMBERS           0, 1, ..., WIDTH - 1: the lane's own number
 *   (vec)(x)          x in each lane; comparisons of vec and `condition ? a : b` of two vec go lane by lane
 *   VMAX vexp vlog vexp2 vlog2_1p fabs sqrt VACC VREAL
 *   vload_row(left, fill, p, after), vstore_row(v, left, p, after)
 *                     p[0], ..., p[WIDTH - 1], one in each lane: how a row that all lanes share is read. There is no
 *                     p[left]: lanes from there on get `fill`, or store nothing. VLOAD, VSTORE, VLOAD_ACC, VSTORE_ACC:
 *                     all are there; vload_part, vstore_part: `count` < WIDTH of them are.
 *   highest, total    over all lanes, always in the same order: the maximum of a vec, the sum of an accs
 *   SOMEWHERE, BITS   over all lanes, of a comparison: whether it holds for any; bit r: for lane r (WIDTH <= 32)
 *   WHERE(holds)      if (WHERE(x > 0)) skips what only lanes with x > 0 have to do: of a vector's, all go if one does,
 *                     of a warp's, each by itself, so that no word there goes over all lanes
 *   EACH_LANE(r, n)   heads what each lane r < n does on its own: gathers, x[index[r]], and the row of its own data
 *                     point. There MINE(x, r) is lane r's number of `lanes` x, and no word goes over all lanes.
 *   ONCE              before what one lane does for all: ONCE sum[n] += x;
 *   MEET()            lanes see what others have written to global memory, and may overwrite what others have read
 *
 * So a data point is in each lane (`lanes`, EACH_LANE), or all lanes have their parts of one's row (vec, vload_row);
 * for (r = 0; r < count; r++) { ... SET(x, r, total(...)); } leads from one to the other. What goes over all lanes,
 * AT and SET, too, stands where all lanes come by: in no `?:`, && or || that they see differently.
 * LANES_BEGIN; heads a kernel. A function that uses AT, highest, total, SOMEWHERE or BITS, or one that does, has
 * LANES_PARAM before its parameters, LANES_ARG before its arguments: in OpenCL it has no local memory of its own.
 */
#ifndef GEM_H
#define GEM_H

#ifndef GEM_REAL
#define GEM_REAL 32
#endif
#ifndef GEM_SUMS
#define GEM_SUMS 64
#endif
#ifndef ATOMICS
#define ATOMICS 1
#endif
#ifndef WIDTH
#define WIDTH 1
#endif
#define VECTORS_OF_A_CPU (WIDTH > 1 && GROUP == 1)

/* ------------------------------------------------------------------------------------------- OpenCL C */
#if defined(__OPENCL_VERSION__)

#define KERNEL __kernel __attribute__((reqd_work_group_size(GROUP, 1, 1)))
#define DEVICE static
#define GLOBAL __global
#define LOCAL __local
#define LOCAL_PTR __local
#define RESTRICT restrict

#define PRIVATE(x, p, n) /* a few numbers of global memory for functions that know no kind of memory but their own */ \
    real x[n]; \
    for (int i = 0; i < (n); i++) \
        x[i] = (p)[i]

#define GROUP_ID ((int)get_group_id(0))
#define GROUPS ((int)get_num_groups(0))
#define LOCAL_ID ((int)get_local_id(0))
#define BARRIER() barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE)

#if GEM_REAL == 64 || GEM_SUMS == 64
#pragma OPENCL EXTENSION cl_khr_fp64 : enable
#endif
typedef long int64;

#define REAL_INF ((real)INFINITY)
#define FLOAT_BITS(x) as_int(x)
#define BITS_FLOAT(x) as_float(x)
#define DOUBLE_BITS(x) as_long(x)
#define BITS_DOUBLE(x) as_double(x)
#define POPCOUNT(x) ((int)popcount((uint)(x)))
#define LOWEST_BIT(x) ((int)popcount(((uint)(x) & -(uint)(x)) - 1))
#define MUL_HIGH(a, b) mul_hi((uint)(a), (uint)(b)) /* the upper 32 bits of their product */

#if WIDTH == 1 && ATOMICS
#pragma OPENCL EXTENSION cl_khr_int64_base_atomics : enable
#define ATOMIC_ADD(address, value) atom_add((volatile __global long *)(address), (long)(value))
#endif

/* ------------------------------------------------------------------------------------------ CUDA C++ */
#elif defined(__CUDACC__) || defined(__CUDA_ARCH__)

#define KERNEL extern "C" __global__ __launch_bounds__(GROUP, 1024 / GROUP) /* so a thread gets up to 64 registers */
#define DEVICE static __device__ __forceinline__
#define GLOBAL
#define LOCAL __shared__
#define LOCAL_PTR
#define RESTRICT __restrict__

#define PRIVATE(x, p, n) const real *x = p

#define GROUP_ID ((int)blockIdx.x)
#define GROUPS ((int)gridDim.x)
#define LOCAL_ID ((int)threadIdx.x)
#define BARRIER() __syncthreads()

typedef long long int64;

#define REAL_INF ((real)__int_as_float(0x7f800000))
#define FLOAT_BITS(x) __float_as_int(x)
#define BITS_FLOAT(x) __int_as_float(x)
#define DOUBLE_BITS(x) __double_as_longlong(x)
#define BITS_DOUBLE(x) __longlong_as_double(x)
#define POPCOUNT(x) __popc(x)
#define LOWEST_BIT(x) (__ffs((int)(x)) - 1)
#define MUL_HIGH(a, b) __umulhi(a, b)
#define ATOMIC_ADD(address, value) atomicAdd((unsigned long long *)(address), (unsigned long long)(value))

#else
#error "gem.h knows OpenCL C and CUDA C++"
#endif

/* ------------------------------------------------------------------------------------------- numbers */
#if GEM_REAL == 64
typedef double real;
#else
typedef float real;
#endif
#if GEM_SUMS == 64
#define GEM_ACC double
#else
#define GEM_ACC float
#endif
typedef GEM_ACC acc; /* for sums over many */

/* A loop that is not worth being unrolled: compilers for CPUs take long where work-items meet in it, and those for GPUs
 * load all at once, into registers that are not there. */
#define ROLLED _Pragma("unroll 1")

#define SLAB(N, g) ((int)((int64)(N) * (g) / GROUPS)) /* where group g begins, if groups share out N rows */

#define REAL_MAX(a, b) fmax((real)(a), (real)(b)) /* a NaN loses */
#define REAL_EXP(x) exp((real)(x))
#define REAL_LOG(x) log((real)(x))

/* What is added up is at least this, or 0: a CPU takes a hundred times as long for a product with less than a normal
 * number, and no sum of weights is changed by one that small. */
#if GEM_REAL == 64
#define REAL_LEAST ((real)1e-290)
#else
#define REAL_LEAST ((real)1e-30)
#endif
#define OP_ADD(a, b) ((a) + (b))
#define OP_OR(a, b) ((a) | (b))
#define SETTLED(x) (fabs(x) < REAL_LEAST ? (x) * 0 : (x))

/* A posterior probability below this is 0, which the sums over the data can skip; float cannot tell it from that beside
 * the probability of one. And the energy, from the largest on, of such a state. */
#if GEM_REAL == 64
#define REAL_FAINT REAL_LEAST
#define FAINT_ENERGY ((real)-667.)
#else
#define REAL_FAINT ((real)1e-14)
#define FAINT_ENERGY ((real)-32.)
#endif

/* ------------------------------------------------------------------------- lanes: elements of a vector */
#if VECTORS_OF_A_CPU

#define GEM_JOIN_(a, b) a##b
#define GEM_JOIN(a, b) GEM_JOIN_(a, b)

#if GEM_REAL == 64
#define GEM_FLOAT double
#define GEM_INT long
typedef GEM_JOIN(double, WIDTH) vec;
typedef GEM_JOIN(long, WIDTH) ivec; /* what a comparison of two vec yields: -1 where true */
#else
#define GEM_FLOAT float
#define GEM_INT int
typedef GEM_JOIN(float, WIDTH) vec;
typedef GEM_JOIN(int, WIDTH) ivec;
#endif
typedef GEM_JOIN(GEM_ACC, WIDTH) accs;

typedef union { /* a vector, and its elements by number */
    vec v;
    real at[WIDTH];
} lanes;
#define AT(x, r) (x).at[r]
#define SET(x, r, value) ((x).at[r] = (value))
#define EACH_LANE(r, n) for (int r = 0; r < (n); r++)
#define MINE(x, r) (x).at[r]
#define ONCE
#define MEET()
#define WHERE(holds) SOMEWHERE(holds)
#define WARP GROUP_ID
#define WARPS GROUPS
#define LANES_BEGIN
#define LANES_PARAM
#define LANES_ARG
#define SHARED /* what the work-items of a group share, here one: its own memory */
#define SHARED_PTR

/* Vectors in global memory, wherever they begin. (pocl compiles vload and vstore to twice the instructions.) */
typedef vec loose_vec __attribute__((aligned(sizeof(real))));
typedef accs loose_accs __attribute__((aligned(sizeof(acc))));
#define VLOAD(p) (*(GLOBAL const loose_vec *)(p))
#define VSTORE(v, p) (*(GLOBAL loose_vec *)(p) = (v))
#define VLOAD_ACC(p) (*(GLOBAL const loose_accs *)(p))
#define VSTORE_ACC(v, p) (*(GLOBAL loose_accs *)(p) = (v))
#define VACC(v) GEM_JOIN(GEM_JOIN(convert_, GEM_ACC), WIDTH)(v)
#if GEM_REAL == 64
#define VREAL(v) GEM_JOIN(convert_double, WIDTH)(v)
#else
#define VREAL(v) GEM_JOIN(convert_float, WIDTH)(v)
#endif
#define VMAX(a, b) ((a) > (b) ? (a) : (b)) /* the first NaN loses, the second stays */

/* The end of a row: `count` elements, the others `fill`. */
DEVICE vec vload_part(int count, real fill, GLOBAL const real *p)
{
    lanes x = {(vec)(fill)};
    for (int i = 0; i < count; i++)
        x.at[i] = p[i];
    return x.v;
}

DEVICE void vstore_part(vec v, int count, GLOBAL real *p)
{
    lanes x = {v};
    for (int i = 0; i < count; i++)
        p[i] = x.at[i];
}

#if WIDTH == 16
#define NUMBERS (ivec)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15) /* of the elements */
#elif WIDTH == 8
#define NUMBERS (ivec)(0, 1, 2, 3, 4, 5, 6, 7)
#else
#define NUMBERS (ivec)(0, 1, 2, 3)
#endif

/* The next vector of a row of which `left` elements are left, what is beyond them `fill`; and back. At once where the
 * array goes on for so many elements `after` the row: these are written once more as they are. */
DEVICE vec vload_row(int left, real fill, GLOBAL const real *p, size_t after)
{
    if (left >= WIDTH)
        return VLOAD(p);
    return left + after >= WIDTH ? (NUMBERS < left ? VLOAD(p) : (vec)(fill)) : vload_part(left, fill, p);
}

DEVICE void vstore_row(vec v, int left, GLOBAL real *p, size_t after)
{
    if (left >= WIDTH)
        VSTORE(v, p);
    else if (left + after >= WIDTH)
        VSTORE(NUMBERS < left ? v : VLOAD(p), p);
    else
        vstore_part(v, left, p);
}

/* Over the elements of a vector, always in the same order: their maximum, their sum, all their bits. */
#if WIDTH == 16
#define HALVES(T, OP) const T##8 y = OP(x.lo, x.hi); const T##4 z = OP(y.lo, y.hi)
#elif WIDTH == 8
#define HALVES(T, OP) const T##4 z = OP(x.lo, x.hi)
#else
#define HALVES(T, OP) const T##4 z = x
#endif
#define FOLD(T, OP) HALVES(T, OP); const T##2 pair = OP(z.lo, z.hi); return OP(pair.lo, pair.hi)

#if GEM_REAL == 64
DEVICE real highest(vec x) { FOLD(double, VMAX); }
DEVICE int folded(ivec x) { FOLD(long, OP_OR); }
#else
DEVICE real highest(vec x) { FOLD(float, VMAX); }
DEVICE int folded(ivec x) { FOLD(int, OP_OR); }
#endif
#define SOMEWHERE(holds) (folded(holds) != 0)
#define BITS(holds) folded((holds) & (ivec)(1) << NUMBERS) /* bit i: it holds for element i */
#if GEM_SUMS == 64
DEVICE acc total(accs x) { FOLD(double, OP_ADD); }
#else
DEVICE acc total(accs x) { FOLD(float, OP_ADD); }
#endif

/* exp(x) for x <= 0; an exact 0 where a normal number ends. In float a polynomial of degree 7 (Cephes; 2 ulp),
 * inlined, so that several run side by side. */
DEVICE vec vexp(vec x)
{
#if GEM_REAL == 64
    return exp(x);
#else
    const ivec power = GEM_JOIN(convert_int, WIDTH)(x * 1.44269504f - 0.5f); /* cut towards zero: the nearest */
    const vec n = GEM_JOIN(convert_float, WIDTH)(power);
    const vec r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return x < -87.0f ? (vec)(0.0f) : p * GEM_JOIN(as_float, WIDTH)((power + 127) << 23);
#endif
}

/* log(x) for x >= 0; -inf where normal numbers end. In float a polynomial of degree 8 (Cephes; 1 ulp), inlined. */
DEVICE vec vlog(vec x)
{
#if GEM_REAL == 64
    return log(x);
#else
    const ivec bits = GEM_JOIN(as_int, WIDTH)(x);
    const ivec power = (bits - 0x3f3504f3) >> 23; /* x = 2^power m, m from sqrt(1/2) to sqrt(2) */
    const vec n = GEM_JOIN(convert_float, WIDTH)(power);
    const vec f = GEM_JOIN(as_float, WIDTH)(bits - (power << 23)) - 1.0f;
    vec p = f * 7.0376836292e-2f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    p = p * f * (f * f) + n * -2.12194440e-4f - 0.5f * (f * f);
    return x < 1.17549435e-38f ? x * 0.0f - INFINITY : f + p + n * 0.693359375f; /* a NaN stays one */
#endif
}

/* 2^x for x <= 0, an exact 0 where normal numbers end, and log2(1 + x) for 0 <= x <= 1. In float polynomials of degree 6
 * and 8, by least squares reweighted towards the smallest maximum: 2e-9 of the value and 5e-8. */
DEVICE vec vexp2(vec x)
{
#if GEM_REAL == 64
    return exp2(x);
#else
    const ivec power = GEM_JOIN(convert_int, WIDTH)(x - 0.5f);
    const vec r = x - GEM_JOIN(convert_float, WIDTH)(power);
    vec p = r * 1.53458113e-4f + 1.33999312e-3f;
    p = p * r + 9.61848896e-3f;
    p = p * r + 5.55032878e-2f;
    p = p * r + 2.40226469e-1f;
    p = p * r + 6.93147206e-1f;
    p = p * r + 1.0f;
    return x < -126.0f ? (vec)(0.0f) : p * GEM_JOIN(as_float, WIDTH)((power + 127) << 23);
#endif
}

DEVICE vec vlog2_1p(vec x)
{
#if GEM_REAL == 64
    return log1p(x) * 1.4426950408889634;
#else
    vec p = x * -9.333073e-3f + 5.2157377e-2f;
    p = p * x - 1.37686632e-1f;
    p = p * x + 2.42010313e-1f;
    p = p * x - 3.47372648e-1f;
    p = p * x + 4.78702979e-1f;
    p = p * x - 7.21168368e-1f;
    return x * (p * x + 1.442690005f);
#endif
}

#define FOLD_PAIR(a, b, bit) (vec)((a).even + (a).odd, (b).even + (b).odd)
#define AS_BITS(x) GEM_JOIN(GEM_JOIN(as_, GEM_INT), WIDTH)(x)
#define AS_VEC(x) GEM_JOIN(GEM_JOIN(as_, GEM_FLOAT), WIDTH)(x)
#define POWER_OF(x) (x)
#define VFLOAT(x) GEM_JOIN(GEM_JOIN(convert_, GEM_FLOAT), WIDTH)(x)
typedef ivec bits_of_vec;

/* ------------------------------------------------------------------------ lanes: work-items of a warp */
#elif WIDTH > 1

#define LANE ((int)((unsigned int)LOCAL_ID % WIDTH))
#define WARP (GROUP_ID * (GROUP / WIDTH) + LOCAL_ID / WIDTH)
#define WARPS (GROUPS * (GROUP / WIDTH))
#define NUMBERS LANE

typedef real vec;
typedef int ivec;
typedef acc accs;
typedef struct {
    vec v;
} lanes;

/* A warp of CUDA exchanges registers: in pairs, pairs of pairs, ..., so that all lanes get the same. In OpenCL lanes go
 * through local memory and meet at barriers: each adds up every fourth number, and then four neighbours' sums. (Were
 * these the same four for all lanes, PoCL 3.1 would take the result for one of a group and lose it at a barrier.) */
#if WIDTH != 32
#error "a warp has 32 lanes"
#endif
#if defined(__CUDACC__)
#define LANES_BEGIN
#define LANES_PARAM
#define LANES_ARG
#define MEET() __syncwarp()
#define READ(room, x, r) return __shfl_sync(~0u, x, r)
#define OVER_LANES(T, room, four, x, OP) \
    for (int step = WIDTH / 2; step > 0; step /= 2) \
        x = OP(x, __shfl_xor_sync(~0u, x, step)); \
    return x
#define SOMEWHERE(holds) __any_sync(~0u, holds)
#define BITS(holds) ((int)__ballot_sync(~0u, holds))
#else
#if GROUP != WIDTH
#error "lanes that meet at barriers are a group's"
#endif
typedef struct {
    acc numbers[8 * (WIDTH + 1)], sums[WIDTH];
    int bits[WIDTH], bits_sums[WIDTH];
} lanes_room;
#define LANES_BEGIN LOCAL lanes_room lanes_meet[1]
#define LANES_PARAM LOCAL_PTR lanes_room *lanes_meet,
#define LANES_ARG lanes_meet,
#define MEET() BARRIER()
#define READ(room, x, r) \
    lanes_meet->room[LANE] = x; \
    BARRIER(); \
    x = (real)lanes_meet->room[r]; \
    BARRIER(); \
    return x
#define PAIR_OF(T, all, i, step, OP) OP((T)(all)[i], (T)(all)[(i) + (step)])
#define FOUR_OF(T, all, i, step, OP) \
    OP(PAIR_OF(T, all, i, step, OP), PAIR_OF(T, all, (i) + 2 * (step), step, OP))
#define OVER_LANES(T, room, four, x, OP) \
    lanes_meet->room[LANE] = x; \
    BARRIER(); \
    lanes_meet->four[LANE] = OP(FOUR_OF(T, lanes_meet->room, LANE % 4, 4, OP), \
                                FOUR_OF(T, lanes_meet->room, LANE % 4 + 16, 4, OP)); \
    BARRIER(); \
    return FOUR_OF(T, lanes_meet->four, LANE & ~3, 1, OP)
#define SOMEWHERE(holds) (any_bits(LANES_ARG holds) != 0)
#define BITS(holds) any_bits(LANES_ARG (int)((holds) != 0) << LANE)
DEVICE int any_bits(LANES_PARAM int x) { OVER_LANES(int, bits, bits_sums, x, OP_OR); }
#endif
DEVICE real lane_of(LANES_PARAM real x, int r) { READ(numbers, x, r); }
DEVICE real real_highest(LANES_PARAM real x) { OVER_LANES(real, numbers, sums, x, REAL_MAX); }
DEVICE acc acc_total(LANES_PARAM acc x) { OVER_LANES(acc, numbers, sums, x, OP_ADD); }
DEVICE vec with_lane(vec x, int r, real value) { return LANE == r ? value : x; }

#if defined(__CUDACC__) && WIDTH == 32
/* Of lanes that differ in `bit` one goes on with a, the other with b. */
#define FOLD_PAIR(a, b, bit) ((LANE & (bit) ? (b) : (a)) + __shfl_xor_sync(~0u, LANE & (bit) ? (a) : (b), bit))
#else
DEVICE vec vec_totals(LANES_PARAM const vec *x)
{
    acc sum = 0;
    ROLLED for (int first = 0; first < WIDTH; first += 8) {
        for (int r = 0; r < 8; r++)
            lanes_meet->numbers[r * (WIDTH + 1) + LANE] = x[first + r];
        BARRIER();
        for (int lane = 0; lane < WIDTH && LANE / 8 == first / 8; lane++)
            sum += lanes_meet->numbers[LANE % 8 * (WIDTH + 1) + lane];
        BARRIER();
    }
    return (vec)sum;
}
#endif

#if GEM_REAL == 64
typedef int64 bits_of_vec;
#define AS_BITS(x) DOUBLE_BITS(x)
#define AS_VEC(x) BITS_DOUBLE(x)
#else
typedef int bits_of_vec;
#define AS_BITS(x) FLOAT_BITS(x)
#define AS_VEC(x) BITS_FLOAT(x)
#endif
#define POWER_OF(x) ((ivec)(x))
#define VFLOAT(x) ((real)(x))

#define highest(x) real_highest(LANES_ARG x)
#define total(x) acc_total(LANES_ARG x)
#define AT(x, r) lane_of(LANES_ARG (x).v, r)
#define SET(x, r, value) ((x).v = with_lane((x).v, r, value))
#define EACH_LANE(r, n) for (int r = LANE; r < (n); r += WIDTH)
#define MINE(x, r) (x).v
#define ONCE if (LANE == 0)
#define WHERE(holds) (holds)

#define VLOAD(p) ((p)[LANE])
#define VSTORE(v, p) ((p)[LANE] = (v))
#define VLOAD_ACC VLOAD
#define VSTORE_ACC VSTORE
#define VACC(v) ((acc)(v))
#define VREAL(v) ((real)(v))
DEVICE vec vload_part(int count, real fill, GLOBAL const real *p) { return LANE < count ? p[LANE] : fill; }
DEVICE void vstore_part(vec v, int count, GLOBAL real *p)
{
    if (LANE < count)
        p[LANE] = v;
}
#define vload_row(left, fill, p, after) vload_part(left, fill, p)
#define vstore_row(v, left, p, after) vstore_part(v, left, p)

/* ------------------------------------------------------------ lanes of a data point: work-items of a tile */
#else

#define LANES (GROUP / TILE)
#define LANE ((int)((unsigned int)LOCAL_ID % LANES))
#define ROW ((int)((unsigned int)LOCAL_ID / LANES))

typedef real vec; /* fragments are written with the words of vectors */

typedef acc accs;
typedef union {
    vec v;
    real at[1];
} lanes;
#define SHARED LOCAL
#define SHARED_PTR LOCAL_PTR
#define VLOAD(p) (*(p))
#define VSTORE(v, p) (*(p) = (v))
#define VLOAD_ACC VLOAD
#define VSTORE_ACC(v, p) (*(p) = (v))
#define VACC(v) ((acc)(v))
#define VREAL(v) ((real)(v))
#define SOMEWHERE(holds) (holds)
#define total(x) (x)
DEVICE vec vload_row(int left, real fill, GLOBAL const real *p, size_t after) { return left > 0 ? *p : fill; }
DEVICE void vstore_row(vec v, int left, GLOBAL real *p, size_t after)
{
    if (left > 0)
        *p = v;
}

/* Sum and maximum over `lanes` neighbouring work-items, of which this is number `lane`, in a tree: always the same
 * order. Each gets the result. `scratch` has GROUP elements; all work-items of the group must call. */
DEVICE acc tree_sum(acc x, int lane, int lanes, LOCAL_PTR acc *scratch)
{
    scratch[LOCAL_ID] = x;
    BARRIER();
    for (int step = lanes / 2; step > 0; step /= 2) {
        if (lane < step)
            scratch[LOCAL_ID] += scratch[LOCAL_ID + step];
        BARRIER();
    }
    x = scratch[LOCAL_ID - lane];
    BARRIER();
    return x;
}

DEVICE real tree_max(real x, int lane, int lanes, LOCAL_PTR acc *scratch)
{
    scratch[LOCAL_ID] = x;
    BARRIER();
    for (int step = lanes / 2; step > 0; step /= 2) {
        if (lane < step && scratch[LOCAL_ID + step] > scratch[LOCAL_ID])
            scratch[LOCAL_ID] = scratch[LOCAL_ID + step];
        BARRIER();
    }
    x = (real)scratch[LOCAL_ID - lane];
    BARRIER();
    return x;
}

/* Over the lanes of each data point of the tile; over all work-items of a group that takes one data point at a time. */
#define lanes_sum(x, scratch) tree_sum(x, LANE, LANES, scratch)
#define lanes_max(x, scratch) tree_max(x, LANE, LANES, scratch)
#define group_sum(x, scratch) tree_sum(x, LOCAL_ID, GROUP, scratch)

#endif

#if !VECTORS_OF_A_CPU
#define VMAX(a, b) ((a) > (b) ? (a) : (b))
DEVICE vec vexp(vec x) { return exp(x); }
DEVICE vec vlog(vec x) { return log(x); }
DEVICE vec vexp2(vec x) { return exp2(x); }
DEVICE vec vlog2_1p(vec x) { return log1p(x) * (real)1.4426950408889634; }
#endif

#if WIDTH > 1
/* The totals of WIDTH vectors, of x[r] in lane r; x is used up. */
#define totals(x) vec_totals(LANES_ARG x)
#ifdef FOLD_PAIR
DEVICE vec vec_totals(LANES_PARAM vec *x)
{
    for (int count = WIDTH / 2, bit = 1; count > 0; count /= 2, bit *= 2)
        for (int i = 0; i < count; i++)
            x[i] = FOLD_PAIR(x[2 * i], x[2 * i + 1], bit);
    return x[0];
}
#endif

/* The logarithm of a product of up to a hundred numbers >= 0, each as m 2^power: product and power begin with 1 and 0;
 * what is less than the least normal number counts as one that small. */
#if GEM_REAL == 64
#define MANTISSA_BITS 52
#define ONE_BITS 0x3ff0000000000000
#else
#define MANTISSA_BITS 23
#define ONE_BITS 0x3f800000
#endif
#define MULTIPLY(product, power, x) \
    do { \
        const bits_of_vec bits = AS_BITS(x); \
        power += POWER_OF(bits >> MANTISSA_BITS); \
        product *= AS_VEC((bits & (((bits_of_vec)(1) << MANTISSA_BITS) - 1)) | (bits_of_vec)(ONE_BITS)); \
    } while (0)
DEVICE vec vlog_product(vec product, ivec power, int count)
{
    return vlog(product) + VFLOAT(power - count * (ONE_BITS >> MANTISSA_BITS)) * (real)0.6931471805599453;
}
#endif

/* log(a / b) of positive numbers, to all digits where they are near each other. */
DEVICE vec vlog_ratio(vec a, vec b)
{
    const vec above = (a - b) / b, ratio = 1 + above;
    const vec lost = (above - (ratio - 1)) / ratio; /* when 1 was added */
    return 2 * fabs(a - b) < b ? vlog(ratio) + lost : vlog(a / b);
}

/* Where the terms of a fragment are so LARGE that a difference of them needs more digits: `wide`, a vec of data points,
 * and `fine`, a parameter, are then as precise as sums. */
#ifndef LARGE
#define LARGE 0
#endif
#if LARGE
typedef accs wide;
typedef acc fine;
#define WIDE(v) VACC(v)
#define NARROW(w) VREAL(w)
#else
typedef vec wide;
typedef real fine;
#define WIDE(v) (v)
#define NARROW(w) (w)
#endif
#endif
