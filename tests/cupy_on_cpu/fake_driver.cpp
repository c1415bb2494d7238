// libcuda.so.1 for a machine without a GPU: a module is a shared library made by fake_nvrtc.cpp.
//
// Environment:  FAKECUDA_TRACE = 1   print every launch
#include <dlfcn.h>
#include <elf.h>

#include <cstring>
#include <string>

#include "files.h"

#define API extern "C" __attribute__((visibility("default")))

namespace {
enum Result {  // the values of CUresult
    SUCCESS = 0,
    INVALID_VALUE = 1,
    INVALID_IMAGE = 200,
    NOT_FOUND = 500,
};
enum Attribute { MAX_DYNAMIC_SHARED = 8, ATTRIBUTES = 10 };

constexpr unsigned MAX_THREADS = 1024;
constexpr int SHARED_BY_DEFAULT = 48 * 1024;  // more dynamic shared memory must be asked for, as on a GPU
constexpr int SHARED_AT_MOST = 227 * 1024;    // sm_90

using Call = void(void**);
using Launch = void(Call*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, size_t, void**);

struct Function {
    std::string name;
    Call* call;
    Launch* launch;
    // threads, static shared, constant, local, registers, PTX and binary version, cache mode, dynamic shared, carve-out
    int attributes[ATTRIBUTES] = {MAX_THREADS, 0, 0, 0, 32, 90, 90, 0, SHARED_BY_DEFAULT, 0};
};
}  // namespace

API int cuInit(unsigned) { return SUCCESS; }
API int cuDriverGetVersion(int* version) {
    *version = 13020;
    return SUCCESS;
}
API int cuGetErrorName(int error, const char** name) {
    switch (error) {
        case SUCCESS: *name = "CUDA_SUCCESS"; break;
        case INVALID_VALUE: *name = "CUDA_ERROR_INVALID_VALUE"; break;
        case INVALID_IMAGE: *name = "CUDA_ERROR_INVALID_IMAGE"; break;
        case NOT_FOUND: *name = "CUDA_ERROR_NOT_FOUND"; break;
        default: *name = "CUDA_ERROR_UNKNOWN";
    }
    return SUCCESS;
}
API int cuGetErrorString(int error, const char** text) { return cuGetErrorName(error, text); }

// One context, which is there once the runtime has done something on a device (fake_cudart.cpp).
API int cuCtxGetCurrent(void** context) {
    *context = reinterpret_cast<void*>(getenv("FAKECUDA_CONTEXT") ? 1 : 0);
    return SUCCESS;
}
API int cuCtxSetCurrent(void*) { return SUCCESS; }
API int cuCtxGetDevice(int* device) {
    *device = 0;
    return SUCCESS;
}
API int cuStreamGetCtx(void*, void** context) {
    *context = reinterpret_cast<void*>(1);
    return SUCCESS;
}

API int cuModuleLoadData(void** module, const void* image) {
    if (memcmp(image, ELFMAG, SELFMAG)) return INVALID_IMAGE;
    // The length of an image is not passed: an ELF file ends with its section headers.
    const auto* header = static_cast<const Elf64_Ehdr*>(image);
    const size_t bytes = header->e_shoff + static_cast<size_t>(header->e_shnum) * header->e_shentsize;
    const std::string path = temporary_path("fakecuda_module", ".so");
    write_file(path, std::string(static_cast<const char*>(image), bytes));
    *module = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    unlink(path.c_str());
    if (*module) return SUCCESS;
    fprintf(stderr, "fakecuda: %s\n", dlerror());
    return INVALID_IMAGE;
}
API int cuModuleLoad(void** module, const char* path) { return cuModuleLoadData(module, read_file(path).data()); }
API int cuModuleUnload(void*) { return SUCCESS; }  // functions of it may still be held

API int cuModuleGetFunction(void** function, void* module, const char* name) {
    void* call = dlsym(module, (std::string("__cushim_call_") + name).c_str());
    void* launch = dlsym(module, "__cushim_launch");
    if (!call || !launch) return NOT_FOUND;
    *function = new Function{name, reinterpret_cast<Call*>(call), reinterpret_cast<Launch*>(launch)};
    return SUCCESS;
}

API int cuModuleGetGlobal_v2(void** address, size_t* bytes, void* module, const char* name) {
    *address = dlsym(module, name);
    if (!*address) return NOT_FOUND;
    Dl_info info;
    Elf64_Sym* symbol = nullptr;
    if (bytes && dladdr1(*address, &info, reinterpret_cast<void**>(&symbol), RTLD_DL_SYMENT) && symbol)
        *bytes = symbol->st_size;
    return SUCCESS;
}

API int cuFuncGetAttribute(int* value, int attribute, void* function) {
    if (attribute < 0 || attribute >= ATTRIBUTES) return INVALID_VALUE;
    *value = static_cast<Function*>(function)->attributes[attribute];
    return SUCCESS;
}
API int cuFuncSetAttribute(void* function, int attribute, int value) {
    if (attribute < 0 || attribute >= ATTRIBUTES) return INVALID_VALUE;
    if (attribute == MAX_DYNAMIC_SHARED && (value < 0 || value > SHARED_AT_MOST)) return INVALID_VALUE;
    static_cast<Function*>(function)->attributes[attribute] = value;
    return SUCCESS;
}

// The 12 arguments of CUDA's own signature: grid, block, dynamic shared bytes, stream, arguments, extras.
API int cuLaunchKernel(void* handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned dim_x, unsigned dim_y,
                       unsigned dim_z, unsigned shared, void*, void** arguments, void**) {
    auto* function = static_cast<Function*>(handle);
    const size_t threads = static_cast<size_t>(dim_x) * dim_y * dim_z;
    const bool empty = !threads || !grid_x || !grid_y || !grid_z;
    const bool too_large = threads > MAX_THREADS || dim_z > 64 || grid_y > 65535 || grid_z > 65535;
    if (empty || too_large) return INVALID_VALUE;
    if (shared > static_cast<unsigned>(function->attributes[MAX_DYNAMIC_SHARED])) return INVALID_VALUE;
    if (getenv("FAKECUDA_TRACE")) {
        fprintf(stderr, "fakecuda: %s<<<(%u, %u, %u), (%u, %u, %u), %u>>>\n", function->name.c_str(), grid_x, grid_y,
                grid_z, dim_x, dim_y, dim_z, shared);
    }
    function->launch(function->call, grid_x, grid_y, grid_z, dim_x, dim_y, dim_z, shared, arguments);
    return SUCCESS;
}

// Answers of the right shape; they say nothing of a real device (kernels/resources.py does).
API int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void*, int threads, size_t) {
    *blocks = 2048 / (threads > 0 ? threads : 1);
    return SUCCESS;
}
API int cuOccupancyMaxPotentialBlockSize(int* grid, int* threads, void*, size_t (*)(int), size_t, int limit) {
    *grid = 4;
    *threads = limit > 0 && limit < 256 ? limit : 256;
    return SUCCESS;
}
