/* The CUDA runtime without a GPU: a release of torch that is built for CUDA runs on it, its allocator, streams and graphs with it.
 *
 * Memory of the device is memory of the host, copies are done, streams run at once, and a stream that is recorded keeps its copies
 * and launches for the graph. What is not allowed while a thread records is refused, as the real one does. Kernels of torch's own
 * do nothing. Kernels started through the driver come in by `stand_in_launch`.
 *
 * STAND_IN_BYTES: memory of the device; STAND_IN_ARCH: 90 for sm_90; STAND_IN_DEVICES: 0 for none.
 */
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#undef cudaGetDeviceProperties

typedef void (*run_function)(long);
enum kind { COPY, FILL, LAUNCH };

typedef struct node {
    enum kind kind;
    void *target;
    const void *source;
    size_t bytes;
    int value;
    run_function run;
    long number;
    struct node *next;
} node;

typedef struct { node *first, *last; size_t count; } graph;

typedef struct {
    int priority, is_invalid;
    enum cudaStreamCaptureMode mode;
    unsigned long long number;
    graph *recording;
} stream;

typedef struct block { char *at; size_t bytes; struct block *next; } block;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static block *blocks;
static size_t used;
static unsigned long long recordings;
static long torch_launches;
static __thread cudaError_t last_error;
static __thread int is_relaxed, depth;
static __thread stream *recorded_here;

static size_t setting(const char *name, size_t otherwise) {
    const char *text = getenv(name);
    return text ? strtoull(text, NULL, 10) : otherwise;
}

static size_t all_bytes(void) { return setting("STAND_IN_BYTES", (size_t)2 << 30); }
static int device_count(void) { return (int)setting("STAND_IN_DEVICES", 1); }
static int architecture(void) { return (int)setting("STAND_IN_ARCH", 90); }

static cudaError_t fail(cudaError_t error) { return last_error = error; }

/* Waiting is never allowed while this thread records; allocating only if it said that it knows what it does. */
static int is_forbidden(int is_waiting) {
    if (!depth || (!is_waiting && (is_relaxed || recorded_here->mode == cudaStreamCaptureModeRelaxed))) return 0;
    recorded_here->is_invalid = 1;
    return 1;
}
#define REFUSE_WAITING if (is_forbidden(1)) return fail(cudaErrorStreamCaptureUnsupported)
#define REFUSE_UNSAFE if (is_forbidden(0)) return fail(cudaErrorStreamCaptureUnsupported)

static graph *recording_of(cudaStream_t s) { return s ? ((stream *)s)->recording : NULL; }

static node *append(graph *to, enum kind kind) {
    node *added = calloc(1, sizeof *added);
    added->kind = kind;
    if (to->last) to->last->next = added; else to->first = added;
    to->last = added;
    to->count++;
    return added;
}

static void run(const node *n) {
    if (n->kind == COPY) memmove(n->target, n->source, n->bytes);
    if (n->kind == FILL) memset(n->target, n->value, n->bytes);
    if (n->kind == LAUNCH && n->run) n->run(n->number);
}

/* -- for the stand-in of the driver ---------------------------------------------------------------------------------------- */

int stand_in_holds(const void *address, size_t bytes) {
    pthread_mutex_lock(&lock);
    int found = 0;
    for (block *b = blocks; b && !found; b = b->next)
        found = (const char *)address >= b->at && (const char *)address + bytes <= b->at + b->bytes;
    pthread_mutex_unlock(&lock);
    return found;
}

void stand_in_launch(void *s, run_function function, long number) {
    node now = {.kind = LAUNCH, .run = function, .number = number};
    graph *recording = recording_of((cudaStream_t)s);
    if (!recording) { run(&now); return; }
    node *added = append(recording, LAUNCH);
    added->run = function;
    added->number = number;
}

long stand_in_torch_launches(void) { return torch_launches; }

/* -- devices, errors ------------------------------------------------------------------------------------------------------- */

cudaError_t cudaGetDeviceCount(int *n) { return (*n = device_count()) ? cudaSuccess : fail(cudaErrorNoDevice); }
cudaError_t cudaGetDevice(int *device) { *device = 0; return cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return device >= 0 && device < device_count() ? cudaSuccess : fail(cudaErrorInvalidDevice); }

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, "stand-in");
    p->major = architecture() / 10, p->minor = architecture() % 10;
    p->totalGlobalMem = all_bytes();
    p->multiProcessorCount = 132, p->warpSize = 32, p->l2CacheSize = 50 << 20;
    p->sharedMemPerBlock = 48 << 10, p->sharedMemPerBlockOptin = 227 << 10, p->sharedMemPerMultiprocessor = 228 << 10;
    p->maxThreadsPerBlock = 1024, p->maxThreadsPerMultiProcessor = 2048;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
    p->unifiedAddressing = 1, p->memPitch = 2147483647, p->textureAlignment = 512;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = 132; break;
    case cudaDevAttrComputeCapabilityMajor: *value = architecture() / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = architecture() % 10; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 227 << 10; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    default: *value = 0;
    }
    return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *low, int *high) { if (low) *low = 0; if (high) *high = -5; return cudaSuccess; }
cudaError_t cudaDeviceCanAccessPeer(int *can, int from, int to) { *can = 0; return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) { *version = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *version) { *version = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaDeviceSynchronize(void) { REFUSE_WAITING; return cudaSuccess; }
cudaError_t cudaGetLastError(void) { cudaError_t error = last_error; last_error = cudaSuccess; return error; }
cudaError_t cudaPeekAtLastError(void) { return last_error; }
const char *cudaGetErrorName(cudaError_t error) { return "an error of the stand-in"; }

const char *cudaGetErrorString(cudaError_t error) {
    switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated: return "operation failed due to a previous error during capture";
    default: return "some other error";
    }
}

/* -- memory ---------------------------------------------------------------------------------------------------------------- */

cudaError_t cudaMalloc(void **address, size_t bytes) {
    REFUSE_UNSAFE;
    pthread_mutex_lock(&lock);
    int fits = used + bytes <= all_bytes();
    if (fits) {
        block *b = calloc(1, sizeof *b);
        b->at = aligned_alloc(512, (bytes + 511) & ~(size_t)511), b->bytes = bytes, b->next = blocks;
        blocks = b, used += bytes, *address = b->at;
    }
    pthread_mutex_unlock(&lock);
    return fits ? cudaSuccess : fail(cudaErrorMemoryAllocation);
}

cudaError_t cudaFree(void *address) {
    REFUSE_UNSAFE;
    pthread_mutex_lock(&lock);
    for (block **b = &blocks; *b; b = &(*b)->next)
        if ((*b)->at == address) {
            block *gone = *b;
            *b = gone->next, used -= gone->bytes;
            free(gone->at), free(gone);
            break;
        }
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **address, size_t bytes, unsigned flags) {
    REFUSE_UNSAFE;
    *address = aligned_alloc(512, (bytes + 511) & ~(size_t)511);
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *address) { REFUSE_UNSAFE; free(address); return cudaSuccess; }
cudaError_t cudaMemGetInfo(size_t *left, size_t *all) { *all = all_bytes(), *left = *all - used; return cudaSuccess; }

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *address) {
    memset(a, 0, sizeof *a);
    a->type = stand_in_holds(address, 1) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *target, const void *source, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t s) {
    int is_read = kind == cudaMemcpyDeviceToDevice || kind == cudaMemcpyDeviceToHost;
    int is_written = kind == cudaMemcpyDeviceToDevice || kind == cudaMemcpyHostToDevice;
    if (bytes && ((is_read && !stand_in_holds(source, bytes)) || (is_written && !stand_in_holds(target, bytes)))) {
        fprintf(stderr, "stand-in: a copy of %zu bytes from or to what is no memory of the device\n", bytes);
        return fail(cudaErrorInvalidValue);
    }
    graph *recording = recording_of(s);
    if (recording && kind != cudaMemcpyDeviceToDevice) { /* memory of the host that is not pinned */
        ((stream *)s)->is_invalid = 1;
        return fail(cudaErrorStreamCaptureUnsupported);
    }
    node now = {.kind = COPY, .target = target, .source = source, .bytes = bytes}, *added = recording ? append(recording, COPY) : &now;
    added->target = target, added->source = source, added->bytes = bytes;
    if (!recording) run(&now);
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t n, enum cudaMemcpyKind k) { REFUSE_WAITING; return cudaMemcpyAsync(to, from, n, k, NULL); }

cudaError_t cudaMemsetAsync(void *target, int value, size_t bytes, cudaStream_t s) {
    graph *recording = recording_of(s);
    node now = {.kind = FILL}, *added = recording ? append(recording, FILL) : &now;
    added->target = target, added->value = value, added->bytes = bytes;
    if (!recording) run(&now);
    return cudaSuccess;
}

cudaError_t cudaMemset(void *target, int value, size_t bytes) { REFUSE_WAITING; return cudaMemsetAsync(target, value, bytes, NULL); }

/* -- streams, graphs, events ----------------------------------------------------------------------------------------------- */

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int priority) {
    REFUSE_UNSAFE;
    stream *made = calloc(1, sizeof *made);
    made->priority = priority;
    *s = (cudaStream_t)made;
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *s) { return cudaStreamCreateWithPriority(s, 0, 0); }
cudaError_t cudaStreamGetPriority(cudaStream_t s, int *priority) { *priority = s ? ((stream *)s)->priority : 0; return cudaSuccess; }

cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    if (!recording_of(s)) return cudaSuccess;
    ((stream *)s)->is_invalid = 1;
    return fail(cudaErrorStreamCaptureUnsupported);
}

cudaError_t cudaStreamQuery(cudaStream_t s) { return cudaStreamSynchronize(s); }

cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode mode) {
    stream *it = (stream *)s;
    if (!it) return fail(cudaErrorStreamCaptureUnsupported);
    if (it->recording) return fail(cudaErrorIllegalState);
    it->recording = calloc(1, sizeof(graph)), it->is_invalid = 0, it->mode = mode, it->number = ++recordings;
    depth++, recorded_here = it;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *found) {
    stream *it = (stream *)s;
    if (!it || !it->recording) return fail(cudaErrorIllegalState);
    *found = it->is_invalid ? NULL : (cudaGraph_t)it->recording;
    it->recording = NULL, depth--;
    return *found ? cudaSuccess : fail(cudaErrorStreamCaptureInvalidated);
}

cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status) {
    if (!s && depth) return fail(cudaErrorStreamCaptureImplicit);
    *status = !recording_of(s) ? cudaStreamCaptureStatusNone
              : ((stream *)s)->is_invalid ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *status, unsigned long long *number, cudaGraph_t *g,
                                     const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges, size_t *count) {
    cudaError_t error = cudaStreamIsCapturing(s, status);
    if (!error && number && recording_of(s)) *number = ((stream *)s)->number;
    if (!error && g && recording_of(s)) *g = (cudaGraph_t)recording_of(s);
    if (count) *count = 0;
    return error;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
    enum cudaStreamCaptureMode before = is_relaxed ? cudaStreamCaptureModeRelaxed : cudaStreamCaptureModeGlobal;
    is_relaxed = *mode == cudaStreamCaptureModeRelaxed, *mode = before;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *made, cudaGraph_t g, unsigned long long flags) { *made = (cudaGraphExec_t)g; return cudaSuccess; }
cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *nodes, size_t *count) { *count = ((graph *)g)->count; return cudaSuccess; }

cudaError_t cudaGraphLaunch(cudaGraphExec_t g, cudaStream_t s) {
    graph *into = recording_of(s);
    for (node *n = ((graph *)g)->first; n; n = n->next) {
        if (!into) { run(n); continue; }
        node *copy = append(into, n->kind);
        *copy = *n, copy->next = NULL;
    }
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) { *e = (cudaEvent_t)calloc(1, 8); return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t e) { free(e); return cudaSuccess; }
cudaError_t cudaEventQuery(cudaEvent_t e) { REFUSE_UNSAFE; return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t e) { REFUSE_WAITING; return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to) { *milliseconds = 1.0f; return cudaSuccess; }

/* -- kernels of torch's own ------------------------------------------------------------------------------------------------ */

void **__cudaRegisterFatBinary(void *binary) { static void *handle; return &handle; }
cudaError_t __cudaGetKernel(void **kernel, const void *function) { *kernel = (void *)function; return cudaSuccess; }
char __cudaInitModule(void **handle) { return 1; }

static __thread struct { dim3 grid, block; size_t shared; void *stream; } configuration;
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *s) {
    configuration.grid = grid, configuration.block = block, configuration.shared = shared, configuration.stream = s;
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *s) {
    *grid = configuration.grid, *block = configuration.block, *shared = configuration.shared, *(void **)s = configuration.stream;
    return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(void *f, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t s) { torch_launches++; return cudaSuccess; }
cudaError_t cudaLaunchKernel(const void *f, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t s) { torch_launches++; return cudaSuccess; }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **arguments) { torch_launches++; return cudaSuccess; }

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *count, const void *f, int threads, size_t shared) { *count = 4; return cudaSuccess; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *count, const void *f, int threads, size_t shared, unsigned flags) { *count = 4; return cudaSuccess; }
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
    memset(a, 0, sizeof *a);
    a->maxThreadsPerBlock = 1024, a->numRegs = 32, a->binaryVersion = a->ptxVersion = architecture();
    return cudaSuccess;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **found, unsigned version, unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *result) {
    *found = NULL;
    if (result) *result = cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}
