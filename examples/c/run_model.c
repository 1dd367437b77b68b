/* Runs a compiled model from C: prints what it takes and gives, and the first values of each output.
 *
 *   cc run_model.c -I../../crates/runtime/include -L... -linfc_runtime -o run_model
 *   ./run_model model.infc [NAME=FILE]... [DIM=SIZE]...
 *
 * NAME=FILE gives an input as raw little-endian bytes; others are zeros. DIM=SIZE gives a dim that the model leaves open; others are 1.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "infc.h"

static void check(infc_status status) {
  if (status != INFC_OK) {
    fprintf(stderr, "error %d: %s\n", (int)status, infc_last_error());
    exit(1);
  }
}

/* The value of `name=value` among the arguments. */
static const char *argument(int argc, char **argv, const char *name) {
  size_t length = strlen(name);
  for (int i = 2; i < argc; i++)
    if (strncmp(argv[i], name, length) == 0 && argv[i][length] == '=') return argv[i] + length + 1;
  return NULL;
}

static void fill(const char *path, void *data, size_t bytes) {
  FILE *file = fopen(path, "rb");
  if (file == NULL || fread(data, 1, bytes, file) != bytes) {
    fprintf(stderr, "error: %s does not hold %zu bytes\n", path, bytes);
    exit(1);
  }
  fclose(file);
}

int main(int argc, char **argv) {
  if (argc < 2) {
    fprintf(stderr, "usage: %s model.infc [NAME=FILE]... [DIM=SIZE]...\n", argv[0]);
    return 2;
  }
  infc_model *model;
  infc_session *session;
  infc_options options = {sizeof options, 2, 20};
  check(infc_model_open(argv[1], &model));
  check(infc_session_create(model, &options, &session));

  for (size_t i = 0; i < infc_input_count(model); i++) {
    const char *name = infc_input_name(model, i), *file = argument(argc, argv, name);
    int32_t rank = infc_input_rank(model, i);
    int64_t dims[16];
    if (rank > 16) return 1;
    printf("input %s: type %d, dims", name, (int)infc_input_dtype(model, i));
    for (int32_t axis = 0; axis < rank; axis++) {
      const char *text = infc_input_dim_text(model, i, (size_t)axis), *size = argument(argc, argv, text);
      dims[axis] = infc_input_dim(model, i, (size_t)axis);
      if (dims[axis] < 0) dims[axis] = size ? strtoll(size, NULL, 10) : 1;
      printf(" %s", text);
    }
    printf("\n");
    void *data;
    size_t bytes;
    check(infc_input_memory(session, i, dims, (size_t)rank, &data, &bytes));
    if (file)
      fill(file, data, bytes);
    else
      memset(data, 0, bytes);
  }

  check(infc_run(session));

  for (size_t i = 0; i < infc_output_count(model); i++) {
    infc_tensor tensor;
    check(infc_get_output(session, i, &tensor));
    printf("output %s: type %d, dims", infc_output_name(model, i), (int)tensor.dtype);
    for (uint32_t axis = 0; axis < tensor.rank; axis++) printf(" %" PRId64, tensor.dims[axis]);
    printf(", values");
    for (size_t k = 0; tensor.dtype == INFC_F32 && k < tensor.bytes / 4 && k < 10; k++) printf(" %g", ((const float *)tensor.data)[k]);
    for (size_t k = 0; tensor.dtype == INFC_I64 && k < tensor.bytes / 8 && k < 10; k++)
      printf(" %" PRId64, ((const int64_t *)tensor.data)[k]);
    printf("\n");
  }
  infc_session_destroy(session);
  infc_model_close(model);
  return 0;
}
