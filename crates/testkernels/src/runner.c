/* Runs kernels that it reads from standard input, on the architecture that this file was compiled for: under an emulator, tests run code of other machines.
 *
 * A request is numbers of 64 bits (bytes of the image, offset of the function, bytes of scratch, number of tasks, of buffers and of extents; then the bytes of
 * each buffer, and the extents), the image, and what is in the buffers. The answer is what the function gave, and the buffers.
 * Buffers lie 64 bytes apart at least, on addresses that are odd multiples of 8. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

typedef uint64_t entry(void *const *buffers, const int64_t *extents, void *scratch, int64_t begin, int64_t end);

static void get(void *to, size_t bytes) {
    if (bytes && fread(to, bytes, 1, stdin) != 1) exit(3);
}

static uint64_t number(void) {
    uint64_t n;
    get(&n, sizeof n);
    return n;
}

static void *memory(size_t bytes) {
    void *p = NULL;
    if (posix_memalign(&p, 64, bytes + 128)) exit(4);
    memset(p, 0xa5, bytes + 128);
    return p;
}

int main(void) {
    uint64_t image_bytes;
    while (fread(&image_bytes, sizeof image_bytes, 1, stdin) == 1) {
        uint64_t at = number(), scratch_bytes = number(), tasks = number(), buffers = number(), extents = number();
        uint64_t *sizes = memory(8 * buffers);
        int64_t *values = memory(8 * extents);
        void **blocks = memory(8 * buffers), **places = memory(8 * buffers), *scratch = memory(scratch_bytes);
        get(sizes, 8 * buffers);
        get(values, 8 * extents);
        char *image = mmap(NULL, image_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (image == MAP_FAILED) return 5;
        get(image, image_bytes);
        __builtin___clear_cache(image, image + image_bytes);
        if (mprotect(image, image_bytes, PROT_READ | PROT_EXEC)) return 6;
        for (uint64_t i = 0; i < buffers; i++) {
            blocks[i] = memory(sizes[i]);
            places[i] = (char *)blocks[i] + 8;
            get(places[i], sizes[i]);
        }
        uint64_t status = ((entry *)(image + at))(places, values, scratch, 0, (int64_t)tasks);
        fwrite(&status, sizeof status, 1, stdout);
        for (uint64_t i = 0; i < buffers; i++) {
            fwrite(places[i], 1, sizes[i], stdout);
            free(blocks[i]);
        }
        if (fflush(stdout)) return 7;
        munmap(image, image_bytes);
        free(sizes), free(values), free(blocks), free(places), free(scratch);
    }
    return 0;
}
