// NVRTC without CUDA, for tests: every program compiles, to nothing.

#include <stddef.h>
#include <string.h>

typedef int Result;

static const char code[] = "code";
static int program;

Result nvrtcVersion(int* major, int* minor) { return *major = 13, *minor = 0, 0; }
Result nvrtcCreateProgram(void** out, const char* source, const char* name, int headers,
                          const char* const* texts, const char* const* names) {
    return *out = &program, 0;
}
Result nvrtcDestroyProgram(void** of) { return 0; }
Result nvrtcCompileProgram(void* of, int count, const char* const* options) { return 0; }
Result nvrtcGetPTXSize(void* of, size_t* bytes) { return *bytes = sizeof code, 0; }
Result nvrtcGetPTX(void* of, char* to) { return memcpy(to, code, sizeof code), 0; }
Result nvrtcGetCUBINSize(void* of, size_t* bytes) { return *bytes = sizeof code, 0; }
Result nvrtcGetCUBIN(void* of, char* to) { return memcpy(to, code, sizeof code), 0; }
Result nvrtcGetProgramLogSize(void* of, size_t* bytes) { return *bytes = 1, 0; }
Result nvrtcGetProgramLog(void* of, char* to) { return *to = 0, 0; }
