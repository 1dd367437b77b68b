/* The C interface of the infc runtime: load a compiled model, run it.
 *
 *   infc_model *model;
 *   infc_session *session;
 *   if (infc_model_open("model.infc", &model)) die(infc_last_error());
 *   infc_session_create(model, NULL, &session);
 *   infc_set_input(session, 0, INFC_F32, dims, 2, data, sizeof data);
 *   infc_run(session);
 *   infc_get_output(session, 0, &tensor);
 *
 * Functions that can fail return an infc_status, 0 for success; infc_last_error() then says what went wrong. A model may be used
 * by any number of threads; a session by one at a time. Numbers of element types are those of ONNX's TensorProto.DataType.
 */
#ifndef INFC_H
#define INFC_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A loaded model, and memory and threads to run one. */
typedef struct infc_model infc_model;
typedef struct infc_session infc_session;

typedef enum infc_status {
  INFC_OK = 0,
  INFC_ERROR_IO = 1,       /* a file could not be read */
  INFC_ERROR_ARTIFACT = 2, /* no artifact, damaged, or newer than this runtime */
  INFC_ERROR_MACHINE = 3,  /* the machine lacks what the artifact requires */
  INFC_ERROR_INPUT = 4,    /* an input is missing, or has the wrong dtype or shape */
  INFC_ERROR_OUTPUT = 5,   /* no such output, or none yet */
  INFC_ERROR_RUN = 6,      /* a check of the model failed while it ran */
  INFC_ERROR_MEMORY = 7,   /* memory or threads could not be had */
  INFC_ERROR_USAGE = 8     /* a null pointer, or another misuse of this interface */
} infc_status;

typedef enum infc_dtype {
  INFC_F32 = 1, INFC_U8 = 2, INFC_I8 = 3, INFC_U16 = 4, INFC_I16 = 5, INFC_I32 = 6, INFC_I64 = 7, INFC_BOOL = 9,
  INFC_F16 = 10, INFC_F64 = 11, INFC_U32 = 12, INFC_U64 = 13, INFC_BF16 = 16
} infc_dtype;

/* The number of threads that the artifact was compiled for; one if it says nothing. Also without options. */
#define INFC_THREADS_OF_ARTIFACT UINT32_MAX

/* How a session runs. Set `size` to sizeof(infc_options), so that later versions may add fields. */
typedef struct infc_options {
  size_t size;
  uint32_t threads; /* that run kernels, the calling one among them; 0: one for each CPU, at most 1024. Results do not depend on it. */
  uint32_t spin_us; /* how long threads wait busily within a run before they sleep; 1000 is usual, 0 saves the most power */
} infc_options;

/* A tensor in the session's memory. */
typedef struct infc_tensor {
  int32_t dtype;
  uint32_t rank;
  const int64_t *dims;
  const void *data; /* row-major */
  size_t bytes;
} infc_tensor;

/* The version of the runtime, as "0.1.0". */
const char *infc_version(void);

/* What went wrong in the last call that failed on this thread. Valid until the next call that fails on it. */
const char *infc_last_error(void);

/* Loads an artifact file; its weights are mapped, not read. The file must not be changed while the model is open. */
infc_status infc_model_open(const char *path, infc_model **model);

/* The same, for the variant of this name; NULL is the best one that this machine can run, which infc_model_open takes. */
infc_status infc_model_open_variant(const char *path, const char *variant, infc_model **model);

/* The name of the variant that was loaded: that of the machine that it was compiled for. */
const char *infc_model_variant(const infc_model *model);

/* Loads an artifact from memory, which may be freed afterwards. */
infc_status infc_model_load(const void *bytes, size_t length, infc_model **model);

/* The same, for the variant of this name; NULL is the best one that this machine can run. */
infc_status infc_model_load_variant(const void *bytes, size_t length, const char *variant, infc_model **model);

/* Closes a model; sessions that use it keep what they need. Null is fine. */
void infc_model_close(infc_model *model);

/* Inputs and outputs. A number or axis that does not exist gives NULL, 0, -1. */
size_t infc_input_count(const infc_model *model);
size_t infc_output_count(const infc_model *model);
const char *infc_input_name(const infc_model *model, size_t input);
const char *infc_output_name(const infc_model *model, size_t output);
int32_t infc_input_dtype(const infc_model *model, size_t input);
int32_t infc_output_dtype(const infc_model *model, size_t output);
int32_t infc_input_rank(const infc_model *model, size_t input);
int32_t infc_output_rank(const infc_model *model, size_t output);

/* A dim: its size, or -1 if that is known only at run time. */
int64_t infc_input_dim(const infc_model *model, size_t input, size_t axis);
int64_t infc_output_dim(const infc_model *model, size_t output, size_t axis);

/* A dim as text: "224", "batch", "2 * n". */
const char *infc_input_dim_text(const infc_model *model, size_t input, size_t axis);
const char *infc_output_dim_text(const infc_model *model, size_t output, size_t axis);

/* The input that takes the value of this output in the next run, if none is set; -1 if there is none. */
int64_t infc_output_state(const infc_model *model, size_t output);

/* The number of the input or output with this name, -1 if there is none. */
int64_t infc_find_input(const infc_model *model, const char *name);
int64_t infc_find_output(const infc_model *model, const char *name);

/* Makes a session; options may be null (one thread). */
infc_status infc_session_create(const infc_model *model, const infc_options *options, infc_session **session);

/* Null is fine. */
void infc_session_destroy(infc_session *session);

/* Copies an input into the session, where it stays for all further runs (one with state: for the next). */
infc_status infc_set_input(infc_session *session, size_t input, int32_t dtype, const int64_t *dims, size_t rank, const void *data,
                           size_t bytes);

/* The session's memory for an input of these dims, to be written in place instead of infc_set_input. It stays the input's, also for
 * further runs, until the input is set or its memory is asked for again, or, for an input with state, until the next run. */
infc_status infc_input_memory(infc_session *session, size_t input, const int64_t *dims, size_t rank, void **data, size_t *bytes);

/* Runs the model on the inputs that were set. */
infc_status infc_run(infc_session *session);

/* An output of the last run, valid until the next call with this session that sets, runs, resets or destroys. */
infc_status infc_get_output(const infc_session *session, size_t output, infc_tensor *tensor);

/* Forgets state: the next run starts from zeros, or from what is set. */
infc_status infc_reset(infc_session *session);

/* Bytes that the session holds (arena, scratch, inputs, outputs), and those of the model's constants. Either may be null. */
infc_status infc_memory(const infc_session *session, uint64_t *session_bytes, uint64_t *constants_bytes);

#ifdef __cplusplus
}
#endif
#endif
