// cushim.h: CUDA C++ on the host. Every thread of a block is a fibre; blocks run one after the other.
//
// The stand-in for NVRTC (fake_nvrtc.cpp) puts this header in front of a kernel's source and turns the markers
// left by __global__ and __shared__ into exported entry points and into storage that is poisoned per block.
//
// Environment:  CUSHIM_ORDER = fwd | rev | rand   the order in which the fibres of a block take their turns
//               CUSHIM_STRICT = 1                 abort when a barrier is not reached by every thread alike
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#include <cuda_runtime.h>

// What the driver program looks for in the preprocessed text.
#undef __global__
#undef __shared__
#undef __launch_bounds__
#define __global__ __cushim_global__
#define __shared__ __cushim_shared__
#define __launch_bounds__(...)

using std::isfinite;
using std::isinf;
using std::isnan;
using std::signbit;

// The linker's bounds of all static __shared__ storage of this module; null where a module has none.
extern "C" char __start_cushim_shared[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_cushim_shared[] __attribute__((weak, visibility("hidden")));

// ---------------------------------------------------------------------------------------- switching stacks
#if defined(__x86_64__) && !defined(CUSHIM_UCONTEXT)
extern "C" __attribute__((weak)) void cushim_switch(void** from, void* to);
asm(R"(
.weak cushim_switch
.type cushim_switch,@function
cushim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");

namespace cushim {
using Context = void*;  // the stack pointer; everything else lies on the stack

inline void prepare(Context& context, char* stack, size_t size, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack + size);
    *--top = nullptr;  // keeps the stack aligned as after a call
    *--top = reinterpret_cast<void*>(entry);
    for (int saved = 0; saved < 6; saved++) *--top = nullptr;
    context = top;
}
inline void jump(Context& from, Context& to) { cushim_switch(&from, to); }
}  // namespace cushim
#else
#include <ucontext.h>
namespace cushim {
using Context = ucontext_t;  // any other machine: correct, and slower by a system call per switch

inline void prepare(Context& context, char* stack, size_t size, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = size;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
}
inline void jump(Context& from, Context& to) { swapcontext(&from, &to); }
}  // namespace cushim
#endif

// ------------------------------------------------------------------------------------- blocks and fibres
namespace cushim {
constexpr int MAX_THREADS = 1024;  // of a block: the driver refuses more
constexpr size_t STACK_BYTES = 64 * 1024;
constexpr size_t DYNAMIC_SHARED_BYTES = 1 << 20;
constexpr uint64_t CANARY = 0xC0FFEE5AFE57ACC5ull;  // at the low end of every stack
constexpr int POISON = 0xFF;                        // NaN as a float or double, -1 as an integer

enum class State { running, at_barrier, done };
enum class Order { forwards, backwards, random };

struct Fiber {
    Context context{};
    char* stack = nullptr;
    uint3 index{};
    State state = State::running;
    const void* site = nullptr;  // the barrier it waits at
};

// Lanes deposit a value each; two buffers, so that a fast lane cannot overwrite what a slow one has yet to read.
struct Warp {
    uint64_t values[2][32];
    unsigned arrived = 0;
    unsigned generation = 0;
};

struct Block {
    uint3 index{};
    dim3 dim, grid;
    Fiber fibers[MAX_THREADS];  // plain arrays: every kernel's compilation reads this header
    Warp warps[MAX_THREADS / 32];
    int current = -1;
    Context scheduler{};
    uint64_t progress = 0;  // counts barriers, collectives and exits: standing still means a deadlock
    void (*kernel)(void**) = nullptr;
    void** arguments = nullptr;

    int threads() const { return dim.x * dim.y * dim.z; }
    Fiber& fiber() { return fibers[current]; }
};

inline Block& block() {
    static Block only;
    return only;
}

inline char* dynamic_shared() {
    static char* memory = static_cast<char*>(aligned_alloc(256, DYNAMIC_SHARED_BYTES));
    return memory;
}

[[noreturn]] inline void fail(const char* what) {
    const Block& b = block();
    fprintf(stderr, "cushim: %s (block %u, %u, %u, thread %d)\n", what, b.index.x, b.index.y, b.index.z, b.current);
    abort();
}

inline void yield() {
    Block& b = block();
    jump(b.fiber().context, b.scheduler);
}

inline void fiber_main() {
    Block& b = block();
    b.kernel(b.arguments);
    b.fiber().state = State::done;
    b.progress++;
    yield();
    abort();  // a finished fibre is never resumed
}

inline void barrier(const void* site) {
    Block& b = block();
    b.fiber().state = State::at_barrier;
    b.fiber().site = site;
    b.progress++;
    yield();
}

inline Order order() {
    static const Order chosen = [] {
        const char* name = getenv("CUSHIM_ORDER");
        if (!name || !*name || !strcmp(name, "fwd")) return Order::forwards;
        if (!strcmp(name, "rev")) return Order::backwards;
        if (!strcmp(name, "rand")) return Order::random;
        fprintf(stderr, "cushim: CUSHIM_ORDER=%s is none of fwd, rev, rand\n", name);
        abort();
    }();
    return chosen;
}

// A linear congruential generator: the same shuffles on every run.
inline void shuffle(int* turns, int n) {
    static unsigned seed = 1;
    for (int i = n - 1; i > 0; i--) {
        seed = seed * 1103515245u + 12345u;
        std::swap(turns[i], turns[(seed >> 8) % (i + 1)]);
    }
}

inline void report_divergence(int waiting, int exited, bool sites_differ) {
    static bool reported = false;
    if (!reported) {
        fprintf(stderr, "cushim: barrier divergence (block %u: %d waiting, %d exited, %s)\n", block().index.x, waiting,
                exited, sites_differ ? "at different barriers" : "at one barrier");
    }
    reported = true;
    if (getenv("CUSHIM_STRICT")) abort();
}

inline void prepare_fibers(Block& b) {
    const int n = b.threads();
    for (int i = 0; i < (n + 31) / 32; i++) b.warps[i].arrived = b.warps[i].generation = 0;
    for (int i = 0; i < n; i++) {
        Fiber& f = b.fibers[i];
        if (!f.stack) f.stack = static_cast<char*>(aligned_alloc(64, STACK_BYTES));
        memcpy(f.stack, &CANARY, sizeof CANARY);
        const unsigned u = i;
        f.index = {u % b.dim.x, u / b.dim.x % b.dim.y, u / (b.dim.x * b.dim.y)};
        f.state = State::running;
        f.site = nullptr;
        prepare(f.context, f.stack, STACK_BYTES, &fiber_main);
    }
}

// Runs one fibre until it yields.
inline void resume(Block& b, int thread) {
    b.current = thread;
    Fiber& f = b.fibers[thread];
    jump(b.scheduler, f.context);
    if (memcmp(f.stack, &CANARY, sizeof CANARY)) fail("a thread's stack overflowed: its private arrays exceed 64 KiB");
}

inline void run_block(Block& b) {
    const int n = b.threads();
    prepare_fibers(b);
    int turns[MAX_THREADS];
    for (int i = 0; i < n; i++) turns[i] = order() == Order::backwards ? n - 1 - i : i;
    for (;;) {
        if (order() == Order::random) shuffle(turns, n);
        const uint64_t before = b.progress;
        int running = 0, waiting = 0, exited = 0;
        const void* site = nullptr;
        bool sites_differ = false;
        for (int i = 0; i < n; i++) {
            const int thread = turns[i];
            Fiber& f = b.fibers[thread];
            if (f.state == State::running) resume(b, thread);
            running += f.state == State::running;
            exited += f.state == State::done;
            if (f.state == State::at_barrier) {
                sites_differ |= waiting++ && site != f.site;
                site = f.site;
            }
        }
        if (exited == n) return;
        if (running) {
            if (b.progress == before) fail("deadlock: a warp collective that some lane of its mask never reaches");
            continue;
        }
        if (sites_differ || exited) report_divergence(waiting, exited, sites_differ);
        for (int i = 0; i < n; i++)
            if (b.fibers[i].state == State::at_barrier) b.fibers[i].state = State::running;
    }
}

inline void launch(void (*kernel)(void**), dim3 grid, dim3 dim, size_t dynamic_bytes, void** arguments) {
    Block& b = block();
    b.dim = dim;
    b.grid = grid;
    b.kernel = kernel;
    b.arguments = arguments;
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                b.index = {x, y, z};
                memset(dynamic_shared(), POISON, dynamic_bytes);
                if (__start_cushim_shared != __stop_cushim_shared)  // null, both, where a kernel has no shared array
                    memset(__start_cushim_shared, POISON, __stop_cushim_shared - __start_cushim_shared);
                run_block(b);
            }
}

// The driver passes an array of pointers to the arguments; hand them to a kernel of any signature.
template <class... A, size_t... I>
inline void call_with(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<std::remove_reference_t<A>>*>(arguments[I])...);
}
template <class... A>
inline void call(void (*kernel)(A...), void** arguments) {
    call_with(kernel, arguments, std::index_sequence_for<A...>{});
}

// ------------------------------------------------------------------------------------- warp collectives
inline int lane() { return block().current & 31; }

// The lanes that exist: the last warp of a block may be partial.
inline unsigned existing_lanes() {
    Block& b = block();
    const int left = b.threads() - (b.current & ~31);
    return left >= 32 ? 0xffffffffu : (1u << left) - 1;
}

struct Exchange {
    Warp& warp;
    unsigned generation;
    template <class T>
    T from(int source) const {
        T value;
        memcpy(&value, &warp.values[generation & 1][source], sizeof(T));
        return value;
    }
};

// Deposits a value, waits for every lane of the mask, and returns all their values.
template <class T>
inline Exchange exchange(unsigned mask, T value) {
    static_assert(sizeof(T) <= 8, "a lane exchanges at most 8 bytes");
    Block& b = block();
    Warp& warp = b.warps[b.current >> 5];
    mask &= existing_lanes();
    if (!(mask >> lane() & 1)) fail("a lane calls a warp collective whose mask does not name it");
    const unsigned generation = warp.generation;
    memcpy(&warp.values[generation & 1][lane()], &value, sizeof(T));
    warp.arrived |= 1u << lane();
    b.progress++;
    if ((warp.arrived & mask) == mask) {
        warp.arrived &= ~mask;
        warp.generation++;
    } else {
        while (warp.generation == generation) yield();
    }
    return {warp, generation};
}

template <class T>
inline T shuffle_from(unsigned mask, T value, int source, bool inside) {
    return exchange(mask, value).template from<T>(inside ? source : lane());
}
inline int segment(int width) { return lane() & ~(width - 1); }
}  // namespace cushim

// -------------------------------------------------------------------------------------- CUDA's built-ins
#define threadIdx (cushim::block().fiber().index)
#define blockIdx (cushim::block().index)
#define blockDim (cushim::block().dim)
#define gridDim (cushim::block().grid)
#define warpSize 32

// Each barrier in the text has its own address, so that waiting at different ones is seen.
#define __syncthreads()                  \
    cushim::barrier(({                   \
        static const char site = 0;      \
        static_cast<const void*>(&site); \
    }))

inline void __syncwarp(unsigned mask = 0xffffffffu) { cushim::exchange<int>(mask, 0); }
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    return cushim::shuffle_from(mask, value, cushim::segment(width) + (source & (width - 1)), true);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
    const int source = cushim::lane() ^ bits;
    return cushim::shuffle_from(mask, value, source, source < cushim::segment(width) + width);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const int source = cushim::lane() + static_cast<int>(delta);
    return cushim::shuffle_from(mask, value, source, source < cushim::segment(width) + width);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const int source = cushim::lane() - static_cast<int>(delta);
    return cushim::shuffle_from(mask, value, source, source >= cushim::segment(width));
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    const cushim::Exchange votes = cushim::exchange<int>(mask, predicate != 0);
    mask &= cushim::existing_lanes();
    unsigned ballot = 0;
    for (int source = 0; source < 32; source++)
        if ((mask >> source & 1) && votes.from<int>(source)) ballot |= 1u << source;
    return ballot;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) {
    return __ballot_sync(mask, predicate) == (mask & cushim::existing_lanes());
}
inline unsigned __activemask() { return cushim::existing_lanes(); }

// Atomics: one fibre runs at a time, so reading and then writing is atomic.
#define CUSHIM_ATOMIC(NAME, UPDATED)                \
    template <class T, class U>                     \
    inline T NAME(T* address, U operand) {          \
        const T old = *address;                     \
        const T value = static_cast<T>(operand);    \
        *address = UPDATED;                         \
        return old;                                 \
    }
CUSHIM_ATOMIC(atomicAdd, old + value)
CUSHIM_ATOMIC(atomicSub, old - value)
CUSHIM_ATOMIC(atomicMax, value > old ? value : old)
CUSHIM_ATOMIC(atomicMin, value < old ? value : old)
CUSHIM_ATOMIC(atomicExch, value)
CUSHIM_ATOMIC(atomicOr, old | value)
CUSHIM_ATOMIC(atomicAnd, old& value)
CUSHIM_ATOMIC(atomicXor, old ^ value)
#undef CUSHIM_ATOMIC
template <class T, class U, class V>
inline T atomicCAS(T* address, U expected, V value) {
    const T old = *address;
    if (old == static_cast<T>(expected)) *address = static_cast<T>(value);
    return old;
}

// Bit casts.
#define CUSHIM_CAST(NAME, FROM, TO)          \
    inline TO NAME(FROM value) {             \
        TO result;                           \
        memcpy(&result, &value, sizeof(TO)); \
        return result;                       \
    }
CUSHIM_CAST(__int_as_float, int, float)
CUSHIM_CAST(__float_as_int, float, int)
CUSHIM_CAST(__uint_as_float, unsigned, float)
CUSHIM_CAST(__float_as_uint, float, unsigned)
CUSHIM_CAST(__longlong_as_double, long long, double)
CUSHIM_CAST(__double_as_longlong, double, long long)
#undef CUSHIM_CAST

// Fast-math intrinsics, to the accuracy of the C library.
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frcp_rn(float x) { return 1 / x; }
inline double __dmul_rn(double x, double y) { return x * y; }

// Integers.
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __mul24(int x, int y) { return x * y; }
inline unsigned __umulhi(unsigned x, unsigned y) { return static_cast<unsigned long long>(x) * y >> 32; }
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    return static_cast<unsigned __int128>(x) * y >> 64;
}

template <class T>
inline T __ldg(const T* address) {
    return *address;
}
template <class A, class B>
inline auto min(A a, B b) -> decltype(a + b) {
    return a < b ? a : b;
}
template <class A, class B>
inline auto max(A a, B b) -> decltype(a + b) {
    return a > b ? a : b;
}

// Where the driver enters a module.
extern "C" __attribute__((weak)) void __cushim_launch(void (*kernel)(void**), unsigned grid_x, unsigned grid_y,
                                                      unsigned grid_z, unsigned dim_x, unsigned dim_y, unsigned dim_z,
                                                      size_t dynamic_bytes, void** arguments) {
    cushim::launch(kernel, dim3(grid_x, grid_y, grid_z), dim3(dim_x, dim_y, dim_z), dynamic_bytes, arguments);
}
