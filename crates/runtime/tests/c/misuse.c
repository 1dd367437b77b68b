/* Every function with null pointers, numbers out of range and wrong tensors: an error, never a crash. argv[1] is a model with
 * inputs x f32[n, 8] and bias f32[n]. */
#include <stdio.h>
#include <string.h>

#include "infc.h"

static int failures = 0;
#define EXPECT(condition) \
  do { \
    if (!(condition)) { \
      printf("line %d: %s (last error: %s)\n", __LINE__, #condition, infc_last_error()); \
      failures++; \
    } \
  } while (0)

int main(int argc, char **argv) {
  infc_model *model = NULL;
  infc_session *session = NULL;
  infc_tensor tensor;
  void *data;
  size_t bytes;
  uint64_t held, constants;
  float x[16] = {0};
  int64_t dims[2] = {2, 8}, wrong[2] = {2, 7};
  if (argc != 2) return 2;
  EXPECT(strlen(infc_version()) > 0 && infc_last_error()[0] == 0);

  EXPECT(infc_model_open(NULL, &model) == INFC_ERROR_USAGE && strcmp(infc_last_error(), "path is null") == 0);
  EXPECT(infc_model_open(argv[1], NULL) == INFC_ERROR_USAGE);
  EXPECT(infc_model_open("/does/not/exist", &model) == INFC_ERROR_IO && strstr(infc_last_error(), "/does/not/exist"));
  EXPECT(infc_model_open_variant(NULL, "kit", &model) == INFC_ERROR_USAGE && infc_model_variant(NULL) == NULL);
  EXPECT(infc_model_open_variant(argv[1], "other", &model) == INFC_ERROR_USAGE && model == NULL);
  EXPECT(strstr(infc_last_error(), "no variant 'other'; the artifact has 'kit'"));
  EXPECT(infc_model_open_variant(argv[1], "kit", &model) == INFC_OK && strcmp(infc_model_variant(model), "kit") == 0);
  infc_model_close(model);
  EXPECT(infc_model_open_variant(argv[1], NULL, &model) == INFC_OK && strcmp(infc_model_variant(model), "kit") == 0);
  infc_model_close(model);
  model = NULL;
  EXPECT(infc_model_load(NULL, 10, &model) == INFC_ERROR_USAGE);
  EXPECT(infc_model_load("hello", 5, NULL) == INFC_ERROR_USAGE);
  EXPECT(infc_model_load("hello", 5, &model) == INFC_ERROR_ARTIFACT && model == NULL);
  EXPECT(infc_model_load_variant(NULL, 10, "kit", &model) == INFC_ERROR_USAGE && model == NULL);
  EXPECT(infc_model_load_variant("hello", 5, "kit", NULL) == INFC_ERROR_USAGE);
  EXPECT(infc_model_load_variant("hello", 5, "kit", &model) == INFC_ERROR_ARTIFACT && model == NULL);
  static char file[1 << 20];
  FILE *artifact = fopen(argv[1], "rb");
  size_t length = artifact ? fread(file, 1, sizeof file, artifact) : 0;
  if (artifact) fclose(artifact);
  EXPECT(infc_model_load_variant(file, length, "other", &model) == INFC_ERROR_USAGE && model == NULL);
  EXPECT(infc_model_load_variant(file, length, "kit", &model) == INFC_OK && strcmp(infc_model_variant(model), "kit") == 0);
  infc_model_close(model);
  EXPECT(infc_model_load_variant(file, length, NULL, &model) == INFC_OK && strcmp(infc_model_variant(model), "kit") == 0);
  infc_model_close(model);
  model = NULL;
  infc_model_close(NULL);
  infc_session_destroy(NULL);

  EXPECT(infc_input_count(NULL) == 0 && infc_output_count(NULL) == 0);
  EXPECT(infc_input_name(NULL, 0) == NULL && infc_output_name(NULL, 0) == NULL);
  EXPECT(infc_input_dtype(NULL, 0) == 0 && infc_output_dtype(NULL, 0) == 0);
  EXPECT(infc_input_rank(NULL, 0) == -1 && infc_output_rank(NULL, 0) == -1);
  EXPECT(infc_input_dim(NULL, 0, 0) == -1 && infc_output_dim(NULL, 0, 0) == -1);
  EXPECT(infc_input_dim_text(NULL, 0, 0) == NULL && infc_output_dim_text(NULL, 0, 0) == NULL);
  EXPECT(infc_find_input(NULL, "x") == -1 && infc_find_output(NULL, "x") == -1 && infc_output_state(NULL, 0) == -1);
  EXPECT(infc_session_create(NULL, NULL, &session) == INFC_ERROR_USAGE);

  EXPECT(infc_model_open(argv[1], &model) == INFC_OK && model != NULL);
  EXPECT(infc_input_count(model) == 2 && infc_output_count(model) == 1);
  EXPECT(infc_input_name(model, 2) == NULL && infc_input_dtype(model, 2) == 0 && infc_input_rank(model, 2) == -1);
  EXPECT(infc_input_dim(model, 0, 0) == -1 && infc_input_dim(model, 0, 1) == 8 && infc_input_dim(model, 0, 2) == -1);
  EXPECT(strcmp(infc_input_dim_text(model, 0, 0), "n") == 0 && infc_input_dim_text(model, 0, 9) == NULL);
  EXPECT(infc_find_input(model, "bias") == 1 && infc_find_input(model, "q") == -1 && infc_find_input(model, NULL) == -1);
  EXPECT(infc_find_output(model, "y") == 0 && infc_output_state(model, 0) == -1);

  infc_options options = {4, 1, 20};
  EXPECT(infc_session_create(model, NULL, NULL) == INFC_ERROR_USAGE);
  EXPECT(infc_session_create(model, &options, &session) == INFC_ERROR_USAGE && session == NULL);
  options.size = sizeof options;
  options.threads = 1025;
  EXPECT(infc_session_create(model, &options, &session) == INFC_ERROR_USAGE && session == NULL);
  options.threads = 1;
  EXPECT(infc_session_create(model, &options, &session) == INFC_OK && session != NULL);
  infc_model_close(model);

  EXPECT(infc_set_input(NULL, 0, INFC_F32, dims, 2, x, sizeof x) == INFC_ERROR_USAGE);
  EXPECT(infc_set_input(session, 0, INFC_F32, NULL, 2, x, sizeof x) == INFC_ERROR_USAGE);
  EXPECT(infc_set_input(session, 0, INFC_F32, dims, 2, NULL, sizeof x) == INFC_ERROR_USAGE);
  EXPECT(infc_set_input(session, 0, INFC_F32, dims, SIZE_MAX, x, sizeof x) == INFC_ERROR_USAGE);
  EXPECT(infc_set_input(session, 5, INFC_F32, dims, 2, x, sizeof x) == INFC_ERROR_INPUT);
  EXPECT(infc_set_input(session, 0, INFC_I32, dims, 2, x, sizeof x) == INFC_ERROR_INPUT);
  EXPECT(infc_set_input(session, 0, 1000, dims, 2, x, sizeof x) == INFC_ERROR_INPUT);
  EXPECT(infc_set_input(session, 0, INFC_F32, wrong, 2, x, sizeof x) == INFC_ERROR_INPUT);
  EXPECT(infc_set_input(session, 0, INFC_F32, dims, 2, x, 8) == INFC_ERROR_INPUT);
  EXPECT(infc_run(NULL) == INFC_ERROR_USAGE);
  EXPECT(infc_run(session) == INFC_ERROR_INPUT && strstr(infc_last_error(), "'x' has no value"));
  EXPECT(infc_get_output(session, 0, &tensor) == INFC_ERROR_OUTPUT);
  EXPECT(infc_get_output(session, 0, NULL) == INFC_ERROR_USAGE && infc_get_output(NULL, 0, &tensor) == INFC_ERROR_USAGE);
  EXPECT(infc_input_memory(session, 0, dims, 2, NULL, &bytes) == INFC_ERROR_USAGE);
  EXPECT(infc_input_memory(session, 0, dims, 2, &data, NULL) == INFC_ERROR_USAGE);
  EXPECT(infc_input_memory(NULL, 0, dims, 2, &data, &bytes) == INFC_ERROR_USAGE);
  EXPECT(infc_reset(NULL) == INFC_ERROR_USAGE && infc_memory(NULL, &held, &constants) == INFC_ERROR_USAGE);

  EXPECT(infc_set_input(session, 0, INFC_F32, dims, 2, x, sizeof x) == INFC_OK);
  EXPECT(infc_set_input(session, 1, INFC_F32, dims, 1, x, 8) == INFC_OK);
  EXPECT(infc_run(session) == INFC_OK && infc_reset(session) == INFC_OK);
  EXPECT(infc_get_output(session, 0, &tensor) == INFC_OK && tensor.rank == 1 && tensor.dims[0] == 2 && tensor.bytes == 8);
  EXPECT(infc_get_output(session, 1, &tensor) == INFC_ERROR_OUTPUT);
  EXPECT(infc_memory(session, &held, &constants) == INFC_OK && held > 0 && constants == 32);
  EXPECT(infc_memory(session, NULL, NULL) == INFC_OK);
  infc_session_destroy(session);
  printf("%d failures\n", failures);
  return failures != 0;
}
