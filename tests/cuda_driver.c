/* CUDA's driver over this computer's memory, for the real pycuda to call (tests/test_runtime_pycuda.py).
 *
 * As strict as the real one where our code could err: a call without a current context of its thread fails; memory is
 * freed once, by its kind; copies wait in their stream until it is waited for, and must lie within memory that is held.
 * It says nothing of CUDA. What pycuda names and our code never calls is added to it as functions that fail.
 */
#include <cuda.h>
#include <stdlib.h>
#include <string.h>

#define MOST 256
#define NEED_CONTEXT() do { if (!depth) return CUDA_ERROR_INVALID_CONTEXT; } while (0)

enum kind { GPU = 1, PINNED, STREAM, EVENT };
struct held { enum kind kind; char *start; size_t size; } held[MOST];
struct copy { CUstream stream; void *to; const void *from; size_t size; } copies[MOST];
static int copy_count;
static size_t limit = 1 << 20;
static _Thread_local int depth;

/* For the tests: what is held, and how many contexts the calling thread has. */
int driver_held(void) { int n = 0; for (int i = 0; i < MOST; i++) n += held[i].kind != 0; return n; }
int driver_contexts(void) { return depth; }

static void *hold(enum kind kind, size_t size) {
    for (int i = 0; i < MOST; i++)
        if (!held[i].kind) {
            held[i] = (struct held){kind, calloc(1, size ? size : 1), size};
            return held[i].start;
        }
    return NULL;
}

static CUresult drop(enum kind kind, const void *start) {
    for (int i = 0; i < MOST; i++)
        if (held[i].kind == kind && held[i].start == start) {
            free(held[i].start);
            held[i].kind = 0;
            return CUDA_SUCCESS;
        }
    return CUDA_ERROR_INVALID_VALUE;
}

static int holds(enum kind kind, const void *start, size_t size) {
    for (int i = 0; i < MOST; i++)
        if (held[i].kind == kind && (char *)start >= held[i].start && (char *)start + size <= held[i].start + held[i].size)
            return 1;
    return 0;
}

static CUresult later(CUstream stream, void *to, const void *from, size_t size) {
    if (!holds(STREAM, stream, 0) || copy_count == MOST) return CUDA_ERROR_INVALID_HANDLE;
    copies[copy_count++] = (struct copy){stream, to, from, size};
    return CUDA_SUCCESS;
}

CUresult cuInit(unsigned flags) { return getenv("DRIVER_NO_DEVICE") ? CUDA_ERROR_NO_DEVICE : CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *version) { *version = CUDA_VERSION; return CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult error, const char **text) {
    *text = error == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory"
        : error == CUDA_ERROR_NO_DEVICE ? "no CUDA-capable device is detected"
        : error == CUDA_ERROR_INVALID_CONTEXT ? "invalid device context" : "an error";
    return CUDA_SUCCESS;
}
CUresult cuDeviceGetCount(int *count) { *count = 1; return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int number) { *device = number; return CUDA_SUCCESS; }
CUresult cuDeviceGetName(char *name, int size, CUdevice device) { strncpy(name, "Orin", size); return CUDA_SUCCESS; }
CUresult cuDeviceComputeCapability(int *major, int *minor, CUdevice device) { *major = 8; *minor = 7; return CUDA_SUCCESS; }
CUresult cuDeviceTotalMem(size_t *bytes, CUdevice device) { *bytes = (size_t)7620 << 20; return CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    *value = attribute == CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT ? 8 : attribute == CU_DEVICE_ATTRIBUTE_INTEGRATED ? 1 : 0;
    return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) { *context = (CUcontext)&limit; return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRelease(CUdevice device) { return CUDA_SUCCESS; }
CUresult cuCtxPushCurrent(CUcontext context) { depth++; return CUDA_SUCCESS; }
CUresult cuCtxPopCurrent(CUcontext *context) { NEED_CONTEXT(); depth--; return CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice *device) { NEED_CONTEXT(); *device = 0; return CUDA_SUCCESS; }
CUresult cuMemGetInfo(size_t *free, size_t *total) { NEED_CONTEXT(); *free = limit; *total = 2 * limit; return CUDA_SUCCESS; }
CUresult cuMemAlloc(CUdeviceptr *pointer, size_t size) {
    NEED_CONTEXT();
    if (size > limit) return CUDA_ERROR_OUT_OF_MEMORY;
    *pointer = (CUdeviceptr)hold(GPU, size);
    return CUDA_SUCCESS;
}
CUresult cuMemFree(CUdeviceptr pointer) { NEED_CONTEXT(); return drop(GPU, (void *)pointer); }
CUresult cuMemHostAlloc(void **pointer, size_t size, unsigned flags) {
    NEED_CONTEXT();
    *pointer = hold(PINNED, size);
    return CUDA_SUCCESS;
}
CUresult cuMemFreeHost(void *pointer) { NEED_CONTEXT(); return drop(PINNED, pointer); }
CUresult cuStreamCreate(CUstream *stream, unsigned flags) { NEED_CONTEXT(); *stream = hold(STREAM, 1); return CUDA_SUCCESS; }
CUresult cuStreamDestroy(CUstream stream) { NEED_CONTEXT(); return drop(STREAM, stream); }
CUresult cuStreamSynchronize(CUstream stream) {
    int kept = 0;
    NEED_CONTEXT();
    for (int i = 0; i < copy_count; i++)
        if (copies[i].stream == stream) memcpy(copies[i].to, copies[i].from, copies[i].size);
        else copies[kept++] = copies[i];
    copy_count = kept;
    return CUDA_SUCCESS;
}
CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t size, CUstream stream) {
    NEED_CONTEXT();
    if (!holds(GPU, (void *)to, size) || !holds(PINNED, from, size)) return CUDA_ERROR_INVALID_VALUE;
    return later(stream, (void *)to, from, size);
}
CUresult cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t size, CUstream stream) {
    NEED_CONTEXT();
    if (!holds(GPU, (void *)from, size) || !holds(PINNED, to, size)) return CUDA_ERROR_INVALID_VALUE;
    return later(stream, to, (void *)from, size);
}
CUresult cuEventCreate(CUevent *event, unsigned flags) { NEED_CONTEXT(); *event = hold(EVENT, 1); return CUDA_SUCCESS; }
CUresult cuEventDestroy(CUevent event) { NEED_CONTEXT(); return drop(EVENT, event); }
CUresult cuEventRecord(CUevent event, CUstream stream) { NEED_CONTEXT(); return CUDA_SUCCESS; }
CUresult cuEventSynchronize(CUevent event) { NEED_CONTEXT(); return CUDA_SUCCESS; }
CUresult cuEventElapsedTime(float *ms, CUevent start, CUevent end) { NEED_CONTEXT(); *ms = 1.5f; return CUDA_SUCCESS; }
