// The CUDA runtime on host memory, linked into CuPy's own `runtime` module. Everything is synchronous, or, if asked for,
// copies are as late as CUDA allows. What CuPy names and this file lacks becomes a stub that returns
// cudaErrorNotSupported (build.py).
//
// Environment:  FAKECUDA_NDEV     number of devices (1)
//               FAKECUDA_MEMORY   bytes of memory on each (8 GiB)
//               FAKECUDA_TAKEN    number of a device that another process has for itself
//               FAKECUDA_LAZY     copies on streams other than the null stream are done when they are waited for
#include <cuda_runtime.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>

#define API extern "C" __attribute__((visibility("default")))

namespace {
constexpr int VERSION = 13020;
constexpr int SHARED_PER_BLOCK = 48 * 1024;
constexpr int GRID_X = 0x7fffffff, GRID_YZ = 65535;

struct Allocation {
    size_t bytes;
    int device;
    cudaMemoryType type;
};
std::map<uintptr_t, Allocation> allocations;
std::map<int, size_t> used;  // bytes per device
std::mutex guard;
thread_local int current_device = 0;

size_t number(const char* name, size_t otherwise) {
    const char* value = getenv(name);
    return value && *value ? strtoull(value, nullptr, 10) : otherwise;
}
int device_count() { return static_cast<int>(number("FAKECUDA_NDEV", 1)); }
size_t device_memory() { return number("FAKECUDA_MEMORY", size_t(8) << 30); }

// From CUDA 12 on, to set a device makes a context on it; so does the first work on it. The driver is told (fake_driver.cpp).
cudaError_t open_device(int device) {
    if (static_cast<size_t>(device) == number("FAKECUDA_TAKEN", ~size_t(0))) return cudaErrorDevicesUnavailable;
    setenv("FAKECUDA_CONTEXT", "1", 1);
    return cudaSuccess;
}

// Copies that are not done yet, by stream, each with its number; and which of them an event comes after.
struct Late {
    size_t number;
    std::function<void()> copy;
};
struct Mark {
    cudaStream_t stream;
    size_t number;
};
std::map<cudaStream_t, std::deque<Late>> late;
std::map<cudaEvent_t, Mark> marks;
size_t last_number = 0;

bool is_lazy(cudaStream_t stream) {  // not the null stream, by any of its names
    return reinterpret_cast<uintptr_t>(stream) > 2 && getenv("FAKECUDA_LAZY");
}
void catch_up(cudaStream_t stream, size_t number) {
    auto& waiting = late[stream];
    for (; !waiting.empty() && waiting.front().number <= number; waiting.pop_front()) waiting.front().copy();
}
void catch_up_with(cudaEvent_t event) {
    const auto found = marks.find(event);
    if (found != marks.end()) catch_up(found->second.stream, found->second.number);
}
void catch_up_all() {
    for (auto& [stream, waiting] : late)
        if (!waiting.empty()) catch_up(stream, last_number);
}

// Fresh memory is full of NaN: nothing may rely on zeros.
cudaError_t allocate(void** address, size_t bytes, cudaMemoryType type) {
    std::lock_guard<std::mutex> lock(guard);
    if (const cudaError_t refused = open_device(current_device)) return refused;
    const bool on_device = type != cudaMemoryTypeHost;
    if (on_device && used[current_device] + bytes > device_memory()) return cudaErrorMemoryAllocation;
    if (posix_memalign(address, 512, bytes ? bytes : 512)) return cudaErrorMemoryAllocation;
    memset(*address, 0xFF, bytes);
    allocations[reinterpret_cast<uintptr_t>(*address)] = {bytes, current_device, type};
    if (on_device) used[current_device] += bytes;
    return cudaSuccess;
}

cudaError_t release(void* address) {
    if (!address) return cudaSuccess;
    catch_up_all();  // as a device that is freed does
    std::lock_guard<std::mutex> lock(guard);
    const auto found = allocations.find(reinterpret_cast<uintptr_t>(address));
    if (found == allocations.end()) return cudaErrorInvalidValue;
    if (found->second.type != cudaMemoryTypeHost) used[found->second.device] -= found->second.bytes;
    allocations.erase(found);
    free(address);
    return cudaSuccess;
}

template <class Handle>
cudaError_t make_handle(Handle* handle) {
    *handle = static_cast<Handle>(calloc(1, sizeof(double)));
    return cudaSuccess;
}

double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
}  // namespace

// Devices and errors.
API cudaError_t cudaGetDevice(int* device) {
    *device = current_device;
    return cudaSuccess;
}
API cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= device_count()) return cudaErrorInvalidDevice;
    current_device = device;
    return open_device(device);
}
API cudaError_t cudaGetDeviceCount(int* count) {
    *count = device_count();
    return *count ? cudaSuccess : cudaErrorNoDevice;
}
API cudaError_t cudaDriverGetVersion(int* version) {
    *version = VERSION;
    return cudaSuccess;
}
API cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }
API cudaError_t cudaDeviceSynchronize() {
    catch_up_all();
    return cudaSuccess;
}
API cudaError_t cudaGetLastError() { return cudaSuccess; }
API cudaError_t cudaProfilerStart() { return cudaSuccess; }
API cudaError_t cudaProfilerStop() { return cudaSuccess; }
API cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
    *can = 1;
    return cudaSuccess;
}
API cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }

API cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
        case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
        case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = SHARED_PER_BLOCK; break;
        case cudaDevAttrWarpSize: *value = 32; break;
        case cudaDevAttrMultiProcessorCount: *value = 2; break;
        case cudaDevAttrMaxGridDimX: *value = GRID_X; break;
        case cudaDevAttrMaxGridDimY:
        case cudaDevAttrMaxGridDimZ: *value = GRID_YZ; break;
        case cudaDevAttrMaxBlockDimX:
        case cudaDevAttrMaxBlockDimY: *value = 1024; break;
        case cudaDevAttrMaxBlockDimZ: *value = 64; break;
        case cudaDevAttrConcurrentKernels: *value = 1; break;
        default: *value = 0;
    }
    return cudaSuccess;
}

API cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
    if (device < 0 || device >= device_count()) return cudaErrorInvalidDevice;
    memset(p, 0, sizeof *p);
    strcpy(p->name, "CuPy on the CPU");
    p->uuid.bytes[0] = static_cast<char>(device + 1);
    p->major = 9;
    p->totalGlobalMem = device_memory();
    p->sharedMemPerBlock = SHARED_PER_BLOCK;
    p->regsPerBlock = 65536;
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->multiProcessorCount = 2;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = GRID_X;
    p->maxGridSize[1] = p->maxGridSize[2] = GRID_YZ;
    return cudaSuccess;
}

API const char* cudaGetErrorName(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "cudaSuccess";
        case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
        case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
        case cudaErrorNoDevice: return "cudaErrorNoDevice";
        case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
        case cudaErrorDevicesUnavailable: return "cudaErrorDevicesUnavailable";
        case cudaErrorNotSupported: return "cudaErrorNotSupported";
        default: return "cudaErrorUnknown";
    }
}
API const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

// Memory.
API cudaError_t cudaMalloc(void** p, size_t bytes) { return allocate(p, bytes, cudaMemoryTypeDevice); }
API cudaError_t cudaMallocAsync(void** p, size_t bytes, cudaStream_t) { return cudaMalloc(p, bytes); }
API cudaError_t cudaMallocManaged(void** p, size_t bytes, unsigned) {
    return allocate(p, bytes, cudaMemoryTypeManaged);
}
API cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned) { return allocate(p, bytes, cudaMemoryTypeHost); }
API cudaError_t cudaFree(void* p) { return release(p); }
API cudaError_t cudaFreeAsync(void* p, cudaStream_t) { return release(p); }
API cudaError_t cudaFreeHost(void* p) { return release(p); }

API cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
    std::lock_guard<std::mutex> lock(guard);
    *total = device_memory();
    *available = *total - used[current_device];
    return cudaSuccess;
}

API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
    memset(attributes, 0, sizeof *attributes);
    attributes->type = cudaMemoryTypeUnregistered;
    std::lock_guard<std::mutex> lock(guard);
    const auto address = reinterpret_cast<uintptr_t>(pointer);
    auto found = allocations.upper_bound(address);
    if (found == allocations.begin()) return cudaSuccess;
    const auto& [start, allocation] = *--found;
    if (address - start >= (allocation.bytes ? allocation.bytes : 1)) return cudaSuccess;
    attributes->type = allocation.type;
    attributes->device = allocation.device;
    attributes->devicePointer = const_cast<void*>(pointer);
    return cudaSuccess;
}

API cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
    memmove(to, from, bytes);
    return cudaSuccess;
}
API cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    if (!is_lazy(stream)) return cudaMemcpy(to, from, bytes, kind);
    late[stream].push_back({++last_number, [=] { memmove(to, from, bytes); }});
    return cudaSuccess;
}
API cudaError_t cudaMemcpyPeer(void* to, int, const void* from, int, size_t bytes) {
    return cudaMemcpy(to, from, bytes, cudaMemcpyDefault);
}
API cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, cudaStream_t) {
    return cudaMemcpy(to, from, bytes, cudaMemcpyDefault);
}
API cudaError_t cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                             size_t height, cudaMemcpyKind) {
    for (size_t row = 0; row < height; row++)
        memcpy(static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch, width);
    return cudaSuccess;
}
API cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                                  size_t height, cudaMemcpyKind kind, cudaStream_t) {
    return cudaMemcpy2D(to, to_pitch, from, from_pitch, width, height, kind);
}
API cudaError_t cudaMemset(void* p, int value, size_t bytes) {
    memset(p, value, bytes);
    return cudaSuccess;
}
API cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t) { return cudaMemset(p, value, bytes); }

// Streams: all work is done when the call returns, but for copies if FAKECUDA_LAZY is set.
API cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    const cudaError_t refused = open_device(current_device);
    return refused ? refused : make_handle(stream);
}
API cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return cudaStreamCreate(stream); }
API cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) { return cudaStreamCreate(stream); }
API cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    catch_up(stream, last_number);
    return cudaSuccess;
}
API cudaError_t cudaStreamQuery(cudaStream_t stream) { return cudaStreamSynchronize(stream); }
API cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    cudaStreamSynchronize(stream);
    late.erase(stream);
    free(stream);
    return cudaSuccess;
}
API cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    if (!is_lazy(stream)) catch_up_with(event);  // one that is lazy itself has nothing after the wait but late copies
    return cudaSuccess;
}
API cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
    *status = cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
API cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t callback, void* data, unsigned) {
    callback(stream, cudaSuccess, data);
    return cudaSuccess;
}
API cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t function, void* data) {
    function(data);
    return cudaSuccess;
}

// Events hold the time at which they were recorded.
API cudaError_t cudaEventCreate(cudaEvent_t* event) { return make_handle(event); }
API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return make_handle(event); }
API cudaError_t cudaEventDestroy(cudaEvent_t event) {
    marks.erase(event);
    free(event);
    return cudaSuccess;
}
API cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    marks[event] = {stream, last_number};
    *reinterpret_cast<double*>(event) = seconds();
    return cudaSuccess;
}
API cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    catch_up_with(event);
    return cudaSuccess;
}
API cudaError_t cudaEventQuery(cudaEvent_t event) { return cudaEventSynchronize(event); }
API cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
    *milliseconds = 1e3 * (*reinterpret_cast<double*>(end) - *reinterpret_cast<double*>(start));
    return cudaSuccess;
}
