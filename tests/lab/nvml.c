// A stand-in for libnvidia-ml.so.1, so that the real pynvml can be tested on a machine without a GPU.
//
// It knows nothing about GPUs: every value comes from the text file named by $CT_NVML_FILE, read anew at
// every call, one "key=value" a line. What the file does not name is NOT_SUPPORTED, as for a card that lacks
// it. "3.key=value" counts for GPU 3 only and wins over "key=value". Of equal keys the last one wins.
//
//   init=9                              nvmlInit fails with this error code (9 driver not loaded)
//   count=8                             number of GPUs
//   3.pci=0000:5d:00.0                  its address
//   3.lost=1                            every call about GPU 3 fails with GPU_IS_LOST
//   3.err.nvmlDeviceGetName=999         this call fails with this code
//   3.hang.nvmlDeviceGetTemperature=30  this call sleeps so many seconds first
//   3.field.230=4                       a field value
//
// The structures are those of NVIDIA's nvml.h; the codes are its nvmlReturn_t.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
       CORRUPTED_INFOROM = 14, LOST = 15, ARGUMENT_VERSION_MISMATCH = 25 };
enum { MAX_GPUS = 64, FILE_BYTES = 1 << 16 };

typedef struct { int index; } Gpu;
static Gpu gpus[MAX_GPUS];

// ---- values ------------------------------------------------------------------------------------------

static _Thread_local char text[FILE_BYTES];

static void load(void) {
    const char *path = getenv("CT_NVML_FILE");
    FILE *file = path ? fopen(path, "r") : NULL;
    size_t got = file ? fread(text + 1, 1, FILE_BYTES - 2, file) : 0;
    text[0] = '\n';
    text[got + 1] = 0;
    if (file) fclose(file);
}

static int find(const char *key, char *out, size_t size) {
    char line[200];
    snprintf(line, sizeof line, "\n%s=", key);
    char *last = NULL;
    for (char *at = text; (at = strstr(at, line)); at++) last = at;
    if (!last) return 0;
    last += strlen(line);
    size_t length = strcspn(last, "\n");
    if (length >= size) length = size - 1;
    memcpy(out, last, length);
    out[length] = 0;
    return 1;
}

// the GPU's own value, else the one for all
static int look_up(const Gpu *gpu, const char *key, char *out, size_t size) {
    char own[160];
    if (gpu) {
        snprintf(own, sizeof own, "%d.%s", gpu->index, key);
        if (find(own, out, size)) return 1;
    }
    return find(key, out, size);
}

static long long number_or(const Gpu *gpu, const char *key, long long otherwise) {
    char value[64];
    return look_up(gpu, key, value, sizeof value) ? (long long)strtoull(value, NULL, 0) : otherwise;
}

// ---- faults ------------------------------------------------------------------------------------------

// what every call does first: reads the file, hangs if told to, and says which error to give
static int begin(const char *function, const Gpu *gpu) {
    char key[120];
    load();
    snprintf(key, sizeof key, "hang.%s", function);
    long long seconds = number_or(gpu, key, 0);
    if (seconds) sleep((unsigned)seconds);
    snprintf(key, sizeof key, "err.%s", function);
    long long error = number_or(gpu, key, 0);
    if (error) return (int)error;
    return gpu && number_or(gpu, "lost", 0) ? LOST : SUCCESS;
}

#define BEGIN(gpu)                              \
    do {                                        \
        int error_ = begin(__func__, gpu);      \
        if (error_) return error_;              \
    } while (0)

static int give_number(const Gpu *gpu, const char *key, unsigned long long *out) {
    char value[64];
    if (!look_up(gpu, key, value, sizeof value)) return NOT_SUPPORTED;
    *out = strtoull(value, NULL, 0);
    return SUCCESS;
}

static int give_unsigned(const Gpu *gpu, const char *key, unsigned *out) {
    unsigned long long value = 0;
    int error = give_number(gpu, key, &value);
    *out = (unsigned)value;
    return error;
}

static int give_text(const Gpu *gpu, const char *key, char *out, unsigned size) {
    char value[160];
    if (!look_up(gpu, key, value, sizeof value)) return NOT_SUPPORTED;
    if (strlen(value) >= size) return INSUFFICIENT_SIZE;
    strcpy(out, value);
    return SUCCESS;
}

#define TEXT(function, key) \
    int function(Gpu *gpu, char *out, unsigned size) { BEGIN(gpu); return give_text(gpu, key, out, size); }
#define UNSIGNED(function, key) \
    int function(Gpu *gpu, unsigned *out) { BEGIN(gpu); return give_unsigned(gpu, key, out); }
#define NUMBER(function, key) \
    int function(Gpu *gpu, unsigned long long *out) { BEGIN(gpu); return give_number(gpu, key, out); }

// ---- the library and the list of GPUs ----------------------------------------------------------------

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    for (int i = 0; i < MAX_GPUS; i++) gpus[i].index = i;
    BEGIN(NULL);
    return (int)number_or(NULL, "init", 0);
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int code) {
    return code == SUCCESS ? "Success" : code == LOST ? "GPU is lost" : "an error of the stand-in";
}

int nvmlSystemGetDriverVersion(char *out, unsigned size) { BEGIN(NULL); return give_text(NULL, "driver", out, size); }
int nvmlSystemGetNVMLVersion(char *out, unsigned size) { BEGIN(NULL); return give_text(NULL, "nvml", out, size); }
int nvmlSystemGetCudaDriverVersion(int *out) { BEGIN(NULL); return give_unsigned(NULL, "cuda", (unsigned *)out); }
int nvmlSystemGetCudaDriverVersion_v2(int *out) { return nvmlSystemGetCudaDriverVersion(out); }
int nvmlDeviceGetCount_v2(unsigned *out) { BEGIN(NULL); return give_unsigned(NULL, "count", out); }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Gpu **out) {
    load();
    if (index >= (unsigned)number_or(NULL, "count", 0) || index >= MAX_GPUS) return INVALID_ARGUMENT;
    *out = &gpus[index];
    return begin(__func__, *out);
}

int nvmlDeviceGetIndex(Gpu *gpu, unsigned *out) { BEGIN(gpu); *out = (unsigned)gpu->index; return SUCCESS; }
TEXT(nvmlDeviceGetName, "name")
TEXT(nvmlDeviceGetUUID, "uuid")
TEXT(nvmlDeviceGetSerial, "serial")
TEXT(nvmlDeviceGetVbiosVersion, "vbios")
TEXT(nvmlDeviceGetInforomImageVersion, "inforom")
UNSIGNED(nvmlDeviceGetMinorNumber, "minor")
NUMBER(nvmlDeviceGetVirtualizationMode, "virtualization")
int nvmlDeviceGetGspFirmwareVersion(Gpu *gpu, char *out) { BEGIN(gpu); return give_text(gpu, "gsp", out, 64); }
// inforom_valid=0 is a checksum that is wrong
int nvmlDeviceValidateInforom(Gpu *gpu) {
    unsigned valid = 0;
    BEGIN(gpu);
    int error = give_unsigned(gpu, "inforom_valid", &valid);
    return error ? error : valid ? SUCCESS : CORRUPTED_INFOROM;
}

typedef struct {
    char legacy[16];
    unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
} Pci;

int nvmlDeviceGetPciInfo_v3(Gpu *gpu, Pci *out) {
    BEGIN(gpu);
    char address[40];
    memset(out, 0, sizeof *out);
    if (!look_up(gpu, "pci", address, sizeof address)) return NOT_SUPPORTED;
    if (sscanf(address, "%x:%x:%x", &out->domain, &out->bus, &out->device) != 3) return INVALID_ARGUMENT;
    out->pci_device_id = (unsigned)number_or(gpu, "pci_device_id", 0);
    out->pci_subsystem_id = (unsigned)number_or(gpu, "pci_subsystem", 0);
    // NVML writes the domain with eight digits, in capitals
    snprintf(out->bus_id, sizeof out->bus_id, "%08X:%02X:%02X.0", out->domain, out->bus, out->device);
    snprintf(out->legacy, sizeof out->legacy, "%04X:%02X:%02X.0", out->domain & 0xffff, out->bus & 0xff,
             out->device & 0xff);
    return SUCCESS;
}

// ---- heat, power, clocks -----------------------------------------------------------------------------

int nvmlDeviceGetTemperature(Gpu *gpu, int sensor, unsigned *out) {
    BEGIN(gpu);
    return sensor == 0 ? give_unsigned(gpu, "temperature", out) : INVALID_ARGUMENT;
}

int nvmlDeviceGetTemperatureThreshold(Gpu *gpu, int which, unsigned *out) {
    static const char *const keys[] = {"shutdown", "slowdown", "memory_max", "gpu_max"};
    BEGIN(gpu);
    return which >= 0 && which < 4 ? give_unsigned(gpu, keys[which], out) : NOT_SUPPORTED;
}

typedef struct { unsigned version; int margin; } Margin;
int nvmlDeviceGetMarginTemperature(Gpu *gpu, Margin *out) {
    BEGIN(gpu);
    return give_unsigned(gpu, "margin", (unsigned *)&out->margin);
}

UNSIGNED(nvmlDeviceGetPowerUsage, "power_mw")
UNSIGNED(nvmlDeviceGetEnforcedPowerLimit, "power_limit_mw")
UNSIGNED(nvmlDeviceGetPowerManagementDefaultLimit, "power_default_limit_mw")
NUMBER(nvmlDeviceGetTotalEnergyConsumption, "energy_mj")

int nvmlDeviceGetPowerManagementLimitConstraints(Gpu *gpu, unsigned *low, unsigned *high) {
    BEGIN(gpu);
    int error = give_unsigned(gpu, "power_min_limit_mw", low);
    return error ? error : give_unsigned(gpu, "power_max_limit_mw", high);
}

static const char *clock_key(int type) { return type == 1 ? "sm_clock" : type == 2 ? "memory_clock" : "other_clock"; }
int nvmlDeviceGetClockInfo(Gpu *gpu, int type, unsigned *out) {
    BEGIN(gpu);
    return give_unsigned(gpu, clock_key(type), out);
}
int nvmlDeviceGetMaxClockInfo(Gpu *gpu, int type, unsigned *out) {
    char key[40];
    BEGIN(gpu);
    snprintf(key, sizeof key, "%s_max", clock_key(type));
    return give_unsigned(gpu, key, out);
}

// application_clock, application_clock_default: of the graphics clock, type 0
int nvmlDeviceGetApplicationsClock(Gpu *gpu, int type, unsigned *out) {
    BEGIN(gpu);
    return type == 0 ? give_unsigned(gpu, "application_clock", out) : NOT_SUPPORTED;
}
int nvmlDeviceGetDefaultApplicationsClock(Gpu *gpu, int type, unsigned *out) {
    BEGIN(gpu);
    return type == 0 ? give_unsigned(gpu, "application_clock_default", out) : NOT_SUPPORTED;
}

NUMBER(nvmlDeviceGetCurrentClocksEventReasons, "throttle")
NUMBER(nvmlDeviceGetCurrentClocksThrottleReasons, "throttle")

typedef struct { unsigned long long reference, violation; } Violation;
int nvmlDeviceGetViolationStatus(Gpu *gpu, int policy, Violation *out) {
    char key[40];
    BEGIN(gpu);
    snprintf(key, sizeof key, "violation.%d", policy);
    out->reference = 0;
    return give_number(gpu, key, &out->violation);
}

int nvmlDeviceGetUtilizationRates(Gpu *gpu, unsigned *out) {
    BEGIN(gpu);
    int error = give_unsigned(gpu, "utilisation", &out[0]);
    return error ? error : give_unsigned(gpu, "memory_utilisation", &out[1]);
}

// ---- memory and its errors ---------------------------------------------------------------------------

typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory2;

int nvmlDeviceGetMemoryInfo(Gpu *gpu, Memory *out) {
    BEGIN(gpu);
    out->used = (unsigned long long)number_or(gpu, "memory_used", 0);
    int error = give_number(gpu, "memory_total", &out->total);
    out->free = out->total - out->used;
    return error;
}
int nvmlDeviceGetMemoryInfo_v2(Gpu *gpu, Memory2 *out) {
    BEGIN(gpu);
    out->used = (unsigned long long)number_or(gpu, "memory_used", 0);
    out->reserved = (unsigned long long)number_or(gpu, "memory_reserved", 0);
    int error = give_number(gpu, "memory_total", &out->total);
    out->free = out->total - out->used - out->reserved;
    return error;
}

int nvmlDeviceGetEccMode(Gpu *gpu, unsigned *current, unsigned *pending) {
    BEGIN(gpu);
    *pending = (unsigned)number_or(gpu, "ecc_pending", number_or(gpu, "ecc", 0));
    return give_unsigned(gpu, "ecc", current);
}
UNSIGNED(nvmlDeviceGetDefaultEccMode, "ecc_default")

static const char *kind(int type) { return type ? "uncorrected" : "corrected"; }
static const char *since(int counter) { return counter ? "aggregate" : "volatile"; }

// ecc.uncorrected.volatile=1; when it is not named it is the sum of the locations, which are then 0
int nvmlDeviceGetTotalEccErrors(Gpu *gpu, int type, int counter, unsigned long long *out) {
    char key[60];
    BEGIN(gpu);
    if (!number_or(gpu, "ecc", 0)) return NOT_SUPPORTED;
    snprintf(key, sizeof key, "ecc.%s.%s", kind(type), since(counter));
    *out = (unsigned long long)number_or(gpu, key, 0);
    return SUCCESS;
}
// ecc.uncorrected.volatile.dram=1, .sram=1; which locations exist: ecc_locations=dram,sram
int nvmlDeviceGetMemoryErrorCounter(Gpu *gpu, int type, int counter, int location, unsigned long long *out) {
    char key[60], locations[60];
    BEGIN(gpu);
    const char *name = location == 2 ? "dram" : location == 7 ? "sram" : "other";
    if (!number_or(gpu, "ecc", 0) || !look_up(gpu, "ecc_locations", locations, sizeof locations) ||
        !strstr(locations, name))
        return NOT_SUPPORTED;
    snprintf(key, sizeof key, "ecc.%s.%s.%s", kind(type), since(counter), name);
    *out = (unsigned long long)number_or(gpu, key, 0);
    return SUCCESS;
}

typedef struct {
    unsigned version;
    unsigned long long counts[11];  // parity, SEC-DED and corrected, by life, then by unit
    unsigned threshold_exceeded;
} Sram;
int nvmlDeviceGetSramEccErrorStatus(Gpu *gpu, Sram *out) {
    BEGIN(gpu);
    memset(out->counts, 0, sizeof out->counts);
    return give_unsigned(gpu, "sram_threshold_exceeded", &out->threshold_exceeded);
}

int nvmlDeviceGetRemappedRows(Gpu *gpu, unsigned *corrected, unsigned *uncorrected, unsigned *pending,
                              unsigned *failed) {
    BEGIN(gpu);
    *uncorrected = (unsigned)number_or(gpu, "remap.uncorrectable", 0);
    *pending = (unsigned)number_or(gpu, "remap.pending", 0);
    *failed = (unsigned)number_or(gpu, "remap.failed", 0);
    return give_unsigned(gpu, "remap.correctable", corrected);
}

// remap.histogram=512,0,0,0,0: banks with max, high, partial, low and no spare rows
int nvmlDeviceGetRowRemapperHistogram(Gpu *gpu, unsigned *out) {
    char value[100];
    BEGIN(gpu);
    if (!look_up(gpu, "remap.histogram", value, sizeof value)) return NOT_SUPPORTED;
    int got = sscanf(value, "%u,%u,%u,%u,%u", &out[0], &out[1], &out[2], &out[3], &out[4]);
    return got == 5 ? SUCCESS : INVALID_ARGUMENT;
}

UNSIGNED(nvmlDeviceGetRetiredPagesPendingStatus, "retired_pending")

typedef struct { unsigned version, status[2]; } Repair;
int nvmlDeviceGetUnrepairableMemoryFlag_v1(Gpu *gpu, Repair *out) {
    BEGIN(gpu);
    return give_unsigned(gpu, "memory_unrepairable", &out->status[0]);
}
// repair_pending.channel=1, repair_pending.tpc=1
int nvmlDeviceGetRepairStatus(Gpu *gpu, Repair *out) {
    BEGIN(gpu);
    int error = give_unsigned(gpu, "repair_pending.channel", &out->status[0]);
    return error ? error : give_unsigned(gpu, "repair_pending.tpc", &out->status[1]);
}

// ---- modes, links, processes -------------------------------------------------------------------------

UNSIGNED(nvmlDeviceGetPersistenceMode, "persistence")
UNSIGNED(nvmlDeviceGetDisplayActive, "display_active")
UNSIGNED(nvmlDeviceGetComputeMode, "compute_mode")
UNSIGNED(nvmlDeviceGetPerformanceState, "pstate")
UNSIGNED(nvmlDeviceGetCurrPcieLinkGeneration, "pcie_generation")
UNSIGNED(nvmlDeviceGetMaxPcieLinkGeneration, "pcie_generation_max")
UNSIGNED(nvmlDeviceGetCurrPcieLinkWidth, "pcie_width")
UNSIGNED(nvmlDeviceGetMaxPcieLinkWidth, "pcie_width_max")
UNSIGNED(nvmlDeviceGetPcieReplayCounter, "pcie_replay")

int nvmlDeviceGetMigMode(Gpu *gpu, unsigned *current, unsigned *pending) {
    BEGIN(gpu);
    *pending = (unsigned)number_or(gpu, "mig_pending", number_or(gpu, "mig", 0));
    return give_unsigned(gpu, "mig", current);
}

// nvlinks=18 links, all active unless nvlink.7=0
int nvmlDeviceGetNvLinkState(Gpu *gpu, unsigned link, unsigned *out) {
    char key[40];
    BEGIN(gpu);
    if (link >= number_or(gpu, "nvlinks", 0)) return INVALID_ARGUMENT;
    snprintf(key, sizeof key, "nvlink.%u", link);
    *out = (unsigned)number_or(gpu, key, 1);
    return SUCCESS;
}

typedef struct {
    unsigned version;
    unsigned char cluster[16];
    int status;
    unsigned clique;
    unsigned state;
    unsigned health;
    unsigned char summary;  // from the third form on, which a driver that tells no fabric.summary does not know
} Fabric;
int nvmlDeviceGetGpuFabricInfoV(Gpu *gpu, Fabric *out) {
    char cluster[40] = "";
    BEGIN(gpu);
    long long summary = number_or(gpu, "fabric.summary", -1);
    if (out->version >> 24 >= 3 && summary < 0) return ARGUMENT_VERSION_MISMATCH;
    int error = give_unsigned(gpu, "fabric.state", &out->state);
    out->status = (int)number_or(gpu, "fabric.status", 0);
    out->health = (unsigned)number_or(gpu, "fabric.health", 0);
    out->clique = (unsigned)number_or(gpu, "fabric.clique", 0);
    if (out->version >> 24 >= 3) out->summary = (unsigned char)summary;
    memset(out->cluster, 0, sizeof out->cluster);
    look_up(gpu, "fabric.cluster", cluster, sizeof cluster);  // a UUID
    char *at = cluster;
    for (int i = 0; i < 16 && *at; i++, at += 2) {
        unsigned byte = 0;
        at += *at == '-';
        if (sscanf(at, "%2x", &byte) == 1) out->cluster[i] = (unsigned char)byte;
    }
    return error;
}

// p2p=0 between all, p2p.5=3 with GPU 5
int nvmlDeviceGetP2PStatus(Gpu *gpu, Gpu *other, int which, unsigned *out) {
    char key[40];
    BEGIN(gpu);
    if (which != 2) return INVALID_ARGUMENT;
    snprintf(key, sizeof key, "p2p.%d", other->index);
    return give_unsigned(gpu, key, out) ? give_unsigned(gpu, "p2p", out) : SUCCESS;
}

typedef struct { unsigned pid; unsigned long long memory; unsigned instance, compute_instance; } Process;
// processes=4711:85899345920,4712:1048576
int nvmlDeviceGetComputeRunningProcesses_v3(Gpu *gpu, unsigned *count, Process *out) {
    char value[200] = "";
    BEGIN(gpu);
    look_up(gpu, "processes", value, sizeof value);
    unsigned room = *count;
    *count = 0;
    for (char *word = strtok(value, ","); word; word = strtok(NULL, ",")) {
        if (*count < room && out) {
            memset(&out[*count], 0, sizeof *out);
            if (sscanf(word, "%u:%llu", &out[*count].pid, &out[*count].memory) != 2) return INVALID_ARGUMENT;
        }
        ++*count;
    }
    return *count > room ? INSUFFICIENT_SIZE : SUCCESS;
}

typedef struct {
    uint32_t id, scope;
    long long timestamp, latency;
    unsigned type;
    int result;
    unsigned long long value;
} Field;

// field.230=4, or field.164.7=26562 with a scope; type 3 is unsigned long long, an "i" before the value makes
// it type 5, a signed int
int nvmlDeviceGetFieldValues(Gpu *gpu, int count, Field *fields) {
    BEGIN(gpu);
    for (int i = 0; i < count; i++) {
        Field *field = &fields[i];
        char key[60], value[60];
        snprintf(key, sizeof key, "field.%u.%u", field->id, field->scope);
        int found = look_up(gpu, key, value, sizeof value);
        snprintf(key, sizeof key, "field.%u", field->id);
        found = found || look_up(gpu, key, value, sizeof value);
        field->result = found ? SUCCESS : NOT_SUPPORTED;
        if (!found) continue;
        field->type = value[0] == 'i' ? 5 : 3;
        if (value[0] == 'i') field->value = (unsigned)atoi(value + 1);
        else field->value = strtoull(value, NULL, 0);
    }
    return SUCCESS;
}
