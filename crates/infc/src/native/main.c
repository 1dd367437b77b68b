/* Runs a compiled model: inputs from .npy files or made up, outputs printed and, if asked for, stored as .npy files. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct port {
    const char *name;
    const char *file;  /* the name without what file names cannot hold, another one for each output */
    const char *dtype; /* f32 */
    const char *numpy; /* <f4, or nothing where NumPy has no such dtype */
    size_t width;      /* bytes of an element */
    size_t count;      /* elements, before a run the most that there can be */
    int rank;
    int64_t *dims;
    int changes;       /* whether each run writes the dims */
};

/* Made by the compiler: MODEL, INPUTS, OUTPUTS, ARENA_BYTES, STATE_BYTES, RESET, RUN, MESSAGE, inputs[], outputs[]. */
#include "ports.h"

enum { FAILED = 1, USAGE = 2, WRONG_FILE = 3, FILES = 4 };

static int stop(int code, const char *what, const char *why) {
    fprintf(stderr, "error: %s: %s\n", what, why);
    exit(code);
}

/* Zeroed memory at a multiple of 64, never given back. */
static void *memory(size_t bytes) {
    char *block = calloc(bytes + 64, 1);
    if (!block) stop(FAILED, MODEL, "out of memory");
    return block + (64 - (uintptr_t)block % 64) % 64;
}

/* ---- made-up values, the same as those of `infc run` ---- */

static uint64_t next(uint64_t *state) {
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static void randomise(const struct port *port, unsigned char *to, uint64_t seed) {
    uint64_t state = UINT64_C(0xcbf29ce484222325);
    const char *c;
    size_t i;
    for (c = port->name; *c; c++) state = (state ^ (unsigned char)*c) * UINT64_C(0x100000001b3);
    state ^= seed;
    for (i = 0; i < port->count; i++, to += port->width) {
        uint64_t bits = next(&state);
        double unit = (double)(bits >> 40) / 8388608.0 - 1.0;
        float single = (float)unit;
        if (strcmp(port->dtype, "f32") == 0) {
            memcpy(to, &single, 4);
        } else if (strcmp(port->dtype, "f64") == 0) {
            memcpy(to, &unit, 8);
        } else if (strcmp(port->dtype, "bool") == 0) {
            *to = (unsigned char)(bits >> 63);
        } else if ((port->dtype[0] == 'i' || port->dtype[0] == 'u') && *port->numpy) {
            *to = (unsigned char)((bits >> 33) % 10); /* little endian */
        } else {
            stop(USAGE, port->name, "values of this dtype are not made up: give NAME=zeros or NAME=FILE.npy");
        }
    }
}

/* ---- .npy files ---- */

static void shape_text(const struct port *port, char *to, size_t room) {
    size_t used = (size_t)snprintf(to, room, "%s (", port->numpy);
    int i;
    for (i = 0; i < port->rank && used < room; i++) {
        used += (size_t)snprintf(to + used, room - used, "%lld,%s", (long long)port->dims[i], i + 1 < port->rank ? " " : "");
    }
    if (used < room) snprintf(to + used, room - used, ")");
}

/* Whether the text of a .npy header says dtype and shape of the port. */
static int header_fits(const struct port *port, const char *header) {
    const char *at = strstr(header, "'descr':");
    char quoted[16];
    int i;
    snprintf(quoted, sizeof quoted, "'%s'", port->numpy);
    if (!at) return 0;
    for (at += 8; *at == ' ';) at++;
    if (strncmp(at, quoted, strlen(quoted)) != 0 && (port->width > 1 || strncmp(at + 2, quoted + 2, strlen(quoted) - 2) != 0)) return 0;
    if (!strstr(header, "'fortran_order': False") && port->rank > 1) return 0;
    at = strstr(header, "'shape':");
    at = at ? strchr(at, '(') : NULL;
    for (i = 0; at && i < port->rank; i++) {
        char *end;
        if (strtoll(at + 1, &end, 10) != port->dims[i] || (*end != ',' && *end != ')')) return 0;
        at = end;
    }
    return at && strcspn(at, "0123456789") > strcspn(at, ")"); /* no dim is left */
}

static void load(const struct port *port, void *to, const char *path) {
    unsigned char start[12];
    char expected[256];
    char *header;
    size_t length, skip;
    FILE *file = fopen(path, "rb");
    if (!file) stop(FILES, path, "cannot be opened");
    if (!*port->numpy) stop(USAGE, port->name, "NumPy has no such dtype; use zeros");
    if (fread(start, 1, 10, file) != 10 || memcmp(start, "\x93NUMPY", 6) != 0) stop(WRONG_FILE, path, "is no .npy file");
    skip = start[6] == 1 ? 0 : 2;
    if (fread(start + 10, 1, skip, file) != skip) stop(WRONG_FILE, path, "ends in its header");
    length = start[8] | (size_t)start[9] << 8;
    if (skip) length |= (size_t)start[10] << 16 | (size_t)start[11] << 24;
    header = calloc(length + 1, 1);
    if (!header || fread(header, 1, length, file) != length) stop(WRONG_FILE, path, "ends in its header");
    shape_text(port, expected, sizeof expected);
    if (!header_fits(port, header)) {
        fprintf(stderr, "error: %s: input '%s' is %s in C order, the file has %s", path, port->name, expected, header);
        exit(WRONG_FILE);
    }
    free(header);
    if (fread(to, port->width, port->count, file) != port->count) stop(WRONG_FILE, path, "ends before its data does");
    fclose(file);
}

static void store(const struct port *port, const void *from, const char *folder) {
    char header[512], text[256], path[4096];
    size_t length;
    FILE *file;
    int written = snprintf(path, sizeof path, "%s/%s.npy", folder, port->file);
    if (!*port->numpy) stop(USAGE, port->name, "NumPy has no such dtype, so that it cannot be stored");
    if (written < 0 || (size_t)written >= sizeof path) stop(FILES, folder, "the path is too long");
    shape_text(port, text, sizeof text);
    snprintf(header, sizeof header, "{'descr': '%s', 'fortran_order': False, 'shape': %s, }", port->numpy, strchr(text, '('));
    for (length = strlen(header); (10 + length + 1) % 64 != 0; length++) header[length] = ' ';
    header[length++] = '\n';
    file = fopen(path, "wb");
    if (!file) stop(FILES, path, "cannot be written; does the folder exist?");
    fwrite("\x93NUMPY\x01\x00", 1, 8, file);
    fputc((int)(length & 255), file);
    fputc((int)(length >> 8), file);
    fwrite(header, 1, length, file);
    if (fwrite(from, port->width, port->count, file) != port->count || fclose(file) != 0) stop(FILES, path, "cannot be written");
}

/* ---- values as text ---- */

static float half(uint16_t bits) {
    int exponent = bits >> 10 & 31;
    float value = (float)(bits & 1023) / 1024.0f;
    int i;
    if (exponent == 31) {
        uint32_t wide = UINT32_C(0x7f800000) | (uint32_t)(bits & 1023) << 13;
        memcpy(&value, &wide, 4);
    } else {
        if (exponent) value += 1.0f;
        else exponent = 1;
        for (i = exponent; i < 15; i++) value /= 2;
        for (i = exponent; i > 15; i--) value *= 2;
    }
    return bits >> 15 ? -value : value;
}

/* The shortest text that reads back as the same value. */
static void print_real(double value, int single) {
    char text[40];
    int digits;
    for (digits = 1; digits <= 17; digits++) {
        double back;
        snprintf(text, sizeof text, "%.*g", digits, value);
        back = strtod(text, NULL);
        if (single ? (float)back == (float)value : back == value) break;
    }
    printf(" %s", text);
}

static void print_element(const struct port *port, const unsigned char *at) {
    float f;
    double d;
    uint64_t bits = 0;
    memcpy(&bits, at, port->width < 8 ? port->width : 8); /* little endian */
    if (strcmp(port->dtype, "f32") == 0) {
        memcpy(&f, at, 4);
        print_real((double)f, 1);
    } else if (strcmp(port->dtype, "f64") == 0) {
        memcpy(&d, at, 8);
        print_real(d, 0);
    } else if (strcmp(port->dtype, "f16") == 0) {
        print_real((double)half((uint16_t)bits), 1);
    } else if (strcmp(port->dtype, "bf16") == 0) {
        uint32_t wide = (uint32_t)bits << 16;
        memcpy(&f, &wide, 4);
        print_real((double)f, 1);
    } else if (strcmp(port->dtype, "bool") == 0) {
        printf(bits ? " true" : " false");
    } else if (port->dtype[0] == 'u') {
        printf(" %llu", (unsigned long long)bits);
    } else if (port->dtype[0] == 'i') {
        uint64_t sign = UINT64_C(1) << (8 * port->width - 1);
        printf(" %lld", (long long)((bits ^ sign) - sign));
    } else {
        size_t i;
        printf(" 0x");
        for (i = port->width; i-- > 0;) printf("%02x", at[i]);
    }
}

static void print(const struct port *port, const unsigned char *from) {
    size_t i, shown = port->count < 8 ? port->count : 8;
    printf("%s: %s[", port->name, port->dtype);
    for (i = 0; i < (size_t)port->rank; i++) printf("%s%lld", i ? ", " : "", (long long)port->dims[i]);
    printf("] =");
    for (i = 0; i < shown; i++) print_element(port, from + i * port->width);
    printf(shown < port->count ? " ...\n" : "\n");
}

/* ---- the command line ---- */

static void help(void) {
    int i;
    printf("usage: %s [NAME=FILE.npy|NAME=random:SEED|NAME=zeros]... [--output-dir DIR] [--runs N]\n\n", MODEL);
    printf("Runs the model (N times, with its state), prints the outputs of the last run, stores them in DIR.\n");
    printf("Inputs that are not given are random:0.\n\n");
    for (i = 0; i < INPUTS; i++) printf("input %s: %s, %lu bytes\n", inputs[i].name, inputs[i].dtype, (unsigned long)(inputs[i].width * inputs[i].count));
    for (i = 0; i < OUTPUTS; i++) printf("output %s: %s, %lu bytes\n", outputs[i].name, outputs[i].dtype, (unsigned long)(outputs[i].width * outputs[i].count));
}

static void set(const char *argument, void **values) {
    const char *equals = strrchr(argument, '=');
    int i;
    if (!equals) stop(USAGE, argument, "write NAME=FILE.npy, NAME=random:SEED or NAME=zeros");
    for (i = 0; i < INPUTS; i++) {
        if (strlen(inputs[i].name) == (size_t)(equals - argument) && strncmp(inputs[i].name, argument, (size_t)(equals - argument)) == 0) break;
    }
    if (i == INPUTS) stop(USAGE, argument, "there is no such input; --help lists them");
    equals++;
    if (strcmp(equals, "zeros") == 0) memset(values[i], 0, inputs[i].width * inputs[i].count);
    else if (strncmp(equals, "random:", 7) == 0) randomise(&inputs[i], values[i], strtoull(equals + 7, NULL, 10));
    else load(&inputs[i], values[i], equals);
}

/* Whether an argument gives input `i` a value. */
static int given(int i, int count, char **arguments) {
    size_t length = strlen(inputs[i].name);
    int k;
    for (k = 1; k < count; k++) {
        const char *equals = strrchr(arguments[k], '=');
        if (equals && (size_t)(equals - arguments[k]) == length && strncmp(arguments[k], inputs[i].name, length) == 0) return 1;
    }
    return 0;
}

int main(int count, char **arguments) {
    void *in[INPUTS + 1], *out[OUTPUTS + 1], *places[2 * OUTPUTS + 1];
    void *arena = memory(ARENA_BYTES), *state = memory(STATE_BYTES);
    const char *folder = NULL;
    long runs = 1;
    int i, k, used = 0;
    for (i = 0; i < INPUTS; i++) in[i] = memory(inputs[i].width * inputs[i].count);
    for (i = 0; i < OUTPUTS; i++) {
        places[used++] = out[i] = memory(outputs[i].width * outputs[i].count);
        if (outputs[i].changes) places[used++] = outputs[i].dims;
    }
    for (i = 1; i < count; i++) {
        if (strcmp(arguments[i], "--help") == 0) return help(), 0;
        if (strcmp(arguments[i], "--output-dir") == 0 && i + 1 < count) folder = arguments[++i];
        else if (strcmp(arguments[i], "--runs") == 0 && i + 1 < count) runs = strtol(arguments[++i], NULL, 10);
        else set(arguments[i], in);
    }
    for (i = 0; i < INPUTS; i++) {
        if (!given(i, count, arguments)) randomise(&inputs[i], in[i], 0);
    }
    RESET(state);
    while (runs-- > 0) {
        int32_t status = RUN(in, places, state, arena);
        if (status != 0) stop(FAILED, MODEL, MESSAGE(status));
    }
    for (i = 0; i < OUTPUTS; i++) {
        if (outputs[i].changes) {
            for (outputs[i].count = 1, k = 0; k < outputs[i].rank; k++) outputs[i].count *= (size_t)outputs[i].dims[k];
        }
        print(&outputs[i], out[i]);
        if (folder) store(&outputs[i], out[i], folder);
    }
    return 0;
}
