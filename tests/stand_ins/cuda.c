// A CUDA driver without a GPU, for tests: memory is the host's, copies copy, kernels do nothing, and
// every piece of work must come after all that was given before it on whatever stream, by events and
// host waits alone. What does not is counted.
//
// At exit it writes {"launches", "copies", "waits", "unordered"} to the file STAND_IN_REPORT. With
// STAND_IN_FORGETS set, contexts do not wait for events: then the count must not be 0.

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STREAMS = 64, INVALID_VALUE = 1, OUT_OF_MEMORY = 2 };

typedef int Result;
typedef uint64_t Address;

// The last piece of work of each stream that something comes after.
typedef struct {
    uint64_t last[STREAMS];
} Clock;

typedef struct {
    int index;
    uint64_t work;
    Clock clock;
} Stream;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Stream streams[STREAMS];
static int stream_count = 1; // the first is the default stream
static Clock host;
static uint64_t launches, copies, waits, unordered;
static int context;

static void advance(Clock* clock, const Clock* to) {
    for (int i = 0; i < stream_count; i++)
        if (to->last[i] > clock->last[i]) clock->last[i] = to->last[i];
}

static Stream* of(void* stream) { return stream ? stream : &streams[0]; }

// Work on a stream; the stand-ins of the other libraries call it too.
void stand_in_work(void* on, const char* what) {
    pthread_mutex_lock(&lock);
    Stream* stream = of(on);
    advance(&stream->clock, &host);
    for (int i = 0; i < stream_count; i++)
        if (i != stream->index && stream->clock.last[i] < streams[i].work) {
            if (unordered++ < 20)
                fprintf(stderr, "%s on stream %d may run before work on stream %d\n", what,
                        stream->index, i);
            break;
        }
    stream->clock.last[stream->index] = ++stream->work;
    pthread_mutex_unlock(&lock);
}

__attribute__((destructor)) static void report(void) {
    const char* path = getenv("STAND_IN_REPORT");
    FILE* file = path ? fopen(path, "w") : NULL;
    if (!file) return;
    fprintf(file, "{\"launches\": %lu, \"copies\": %lu, \"waits\": %lu, \"unordered\": %lu}\n",
            launches, copies, waits, unordered);
    fclose(file);
}

// The device.

Result cuInit(unsigned flags) { return 0; }
Result cuDriverGetVersion(int* version) { return *version = 13000, 0; }
Result cuDeviceGetCount(int* count) { return *count = 1, 0; }
Result cuDeviceGet(int* device, int index) { return *device = index, 0; }
Result cuDeviceGetName(char* name, int size, int device) {
    return snprintf(name, size, "stand-in"), 0;
}
Result cuDeviceTotalMem_v2(size_t* bytes, int device) { return *bytes = 8ull << 30, 0; }
Result cuDeviceGetPCIBusId(char* id, int size, int device) {
    return snprintf(id, size, "0000:00:00.0"), 0;
}
Result cuDeviceGetLuid(char* luid, unsigned* mask, int device) {
    return memset(luid, 0, 8), *mask = 0, 0;
}
Result cuDeviceGetUuid_v2(char* uuid, int device) { return memset(uuid, 0, 16), 0; }

// Those of an H100, by their numbers in CUdevice_attribute.
Result cuDeviceGetAttribute(int* value, int attribute, int device) {
    switch (attribute) {
    case 1: case 2: case 3: return *value = 1024, 0;    // threads of a block
    case 4: return *value = 64, 0;
    case 5: return *value = 2147483647, 0;              // blocks of a grid
    case 6: case 7: return *value = 65535, 0;
    case 8: return *value = 49152, 0;                   // shared memory of a block
    case 97: return *value = 232448, 0;
    case 10: return *value = 32, 0;                     // lanes
    case 12: return *value = 65536, 0;                  // registers
    case 16: return *value = 132, 0;                    // multiprocessors
    case 75: return *value = 9, 0;                      // compute capability
    case 76: return *value = 0, 0;
    default: return *value = 1, 0;
    }
}

// The context.

Result cuDevicePrimaryCtxRetain(void** out, int device) { return *out = &context, 0; }
Result cuCtxSetCurrent(void* to) { return 0; }
Result cuCtxGetCurrent(void** out) { return *out = &context, 0; }
Result cuCtxGetStreamPriorityRange(int* least, int* greatest) { return *least = *greatest = 0, 0; }
Result cuMemGetInfo_v2(size_t* free, size_t* total) { return *free = *total = 8ull << 30, 0; }

static void host_waits_for_all(void) {
    pthread_mutex_lock(&lock);
    for (int i = 0; i < stream_count; i++) advance(&host, &streams[i].clock);
    pthread_mutex_unlock(&lock);
}

// Streams and events.

Result cuStreamCreate(void** out, unsigned flags) {
    pthread_mutex_lock(&lock);
    if (stream_count < STREAMS) {
        streams[stream_count].index = stream_count;
        *out = &streams[stream_count++];
    } else {
        *out = NULL;
    }
    pthread_mutex_unlock(&lock);
    return *out ? 0 : OUT_OF_MEMORY;
}
Result cuStreamDestroy_v2(void* stream) { return 0; }
Result cuStreamSynchronize(void* stream) {
    pthread_mutex_lock(&lock);
    advance(&host, &of(stream)->clock);
    pthread_mutex_unlock(&lock);
    return 0;
}
Result cuEventCreate(void** out, unsigned flags) {
    return *out = calloc(1, sizeof(Clock)), *out ? 0 : OUT_OF_MEMORY;
}
Result cuEventDestroy_v2(void* event) { return free(event), 0; }
Result cuEventRecord(void* event, void* stream) {
    pthread_mutex_lock(&lock);
    *(Clock*)event = of(stream)->clock;
    pthread_mutex_unlock(&lock);
    return 0;
}
Result cuEventQuery(void* event) { return 0; }
Result cuEventSynchronize(void* event) {
    pthread_mutex_lock(&lock);
    advance(&host, event);
    pthread_mutex_unlock(&lock);
    return 0;
}
Result cuStreamWaitEvent(void* stream, void* event, unsigned flags) {
    pthread_mutex_lock(&lock);
    waits++;
    advance(&of(stream)->clock, event);
    pthread_mutex_unlock(&lock);
    return 0;
}
Result cuCtxRecordEvent(void* of_context, void* event) {
    pthread_mutex_lock(&lock);
    memset(event, 0, sizeof(Clock));
    for (int i = 0; i < stream_count; i++) advance(event, &streams[i].clock);
    pthread_mutex_unlock(&lock);
    return 0;
}
Result cuCtxWaitEvent(void* of_context, void* event) {
    if (getenv("STAND_IN_FORGETS")) return 0;
    pthread_mutex_lock(&lock);
    waits++;
    for (int i = 0; i < stream_count; i++) advance(&streams[i].clock, event);
    pthread_mutex_unlock(&lock);
    return 0;
}

// Memory.

Result cuMemAlloc_v2(Address* out, size_t bytes) {
    return *out = (Address)calloc(1, bytes), *out ? 0 : OUT_OF_MEMORY;
}
Result cuMemFree_v2(Address memory) { return host_waits_for_all(), free((void*)memory), 0; }
Result cuMemAllocHost_v2(void** out, size_t bytes) {
    return *out = calloc(1, bytes), *out ? 0 : OUT_OF_MEMORY;
}
Result cuMemFreeHost(void* memory) { return free(memory), 0; }

static Result copy(void* to, const void* from, size_t bytes, void* stream) {
    stand_in_work(stream, "a copy");
    __atomic_add_fetch(&copies, 1, __ATOMIC_RELAXED);
    return memcpy(to, from, bytes), 0;
}
Result cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, void* stream) {
    return copy((void*)to, from, bytes, stream);
}
Result cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, void* stream) {
    return copy(to, (void*)from, bytes, stream);
}
Result cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void* stream) {
    return copy((void*)to, (void*)from, bytes, stream);
}
Result cuMemcpyDtoH_v2(void* to, Address from, size_t bytes) {
    return memcpy(to, (void*)from, bytes), 0;
}
Result cuMemsetD8Async(Address to, unsigned char value, size_t bytes, void* stream) {
    stand_in_work(stream, "a fill");
    return memset((void*)to, value, bytes), 0;
}

// CUDA_MEMCPY2D.
typedef struct {
    size_t x, y;
    int kind; // 1 is the host
    void* host;
    Address device;
    void* array;
    size_t pitch;
} Side;

typedef struct {
    Side from, to;
    size_t width, height;
} Rows;

static char* row(const Side* side, size_t y) {
    char* start = side->kind == 1 ? side->host : (char*)side->device;
    return start + (side->y + y) * side->pitch + side->x;
}

Result cuMemcpy2DAsync_v2(const Rows* rows, void* stream) {
    stand_in_work(stream, "a copy of rows");
    __atomic_add_fetch(&copies, 1, __ATOMIC_RELAXED);
    for (size_t y = 0; y < rows->height; y++)
        memcpy(row(&rows->to, y), row(&rows->from, y), rows->width);
    return 0;
}

// Kernels.

Result cuModuleLoadData(void** out, const void* code) { return *out = &context, 0; }
Result cuModuleLoadDataEx(void** out, const void* code, unsigned count, void* names, void* values) {
    return *out = &context, 0;
}
Result cuModuleUnload(void* module) { return 0; }
Result cuModuleGetFunction(void** out, void* module, const char* name) {
    return *out = strdup(name), *out ? 0 : OUT_OF_MEMORY;
}
Result cuFuncSetAttribute(void* function, int attribute, int value) { return 0; }
Result cuFuncGetAttribute(int* value, int attribute, void* function) { return *value = 1, 0; }
Result cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned block_x,
                      unsigned block_y, unsigned block_z, unsigned shared, void* stream,
                      void** arguments, void** extra) {
    unsigned threads = block_x * block_y * block_z;
    if (!x || !y || !z || y > 65535 || z > 65535 || !threads || threads > 1024) return INVALID_VALUE;
    stand_in_work(stream, function);
    __atomic_add_fetch(&launches, 1, __ATOMIC_RELAXED);
    return 0;
}
Result cuGetErrorName(int error, const char** out) { return *out = "an error", 0; }
Result cuGetErrorString(int error, const char** out) { return *out = "an error", 0; }
