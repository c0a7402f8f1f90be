/* Scores rows with a .tflite file that `dlrm-tf export tflite` wrote, through LiteRT's C API.
 *
 *   cc -O2 -o score score.c -L DIR -lLiteRt -Wl,-rpath,DIR -lm        # DIR holds libLiteRt.so, for example that of the wheel
 *   ./score model.tflite < rows.tsv
 *
 * A row is one line: the dense features as raw numbers (empty = missing), then the ids of the categorical features, separated by
 * tabs. An id outside its feature's range counts as out of vocabulary. A feature that may have several keys has as many ids, -1 in the
 * places it does not use; models whose keys have weights are not for this program. A model without dense features has no input
 * for them. Prints one probability a line.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "litert.h"

#define BATCH 64
#define MAX_LINE 4096

static void check(int status, const char* what) {
  if (status != 0) {
    fprintf(stderr, "score: %s failed with status %d\n", what, status);
    exit(1);
  }
}

/* Next tab-separated field of *line, which moves behind it; NULL at the end. */
static char* next_field(char** line) {
  if (*line == NULL) return NULL;
  char* field = *line;
  char* tab = strchr(field, '\t');
  if (tab != NULL) *tab++ = '\0';
  *line = tab;
  return field;
}

static void parse_row(char* line, long number, float* dense, int dense_width, int32_t* ids, int id_width) {
  line[strcspn(line, "\r\n")] = '\0';
  for (int i = 0; i < dense_width + id_width; i++) {
    char *field = next_field(&line), *end = field;
    if (field == NULL) {
      fprintf(stderr, "score: line %ld: wanted %d fields. Received %d\n", number, dense_width + id_width, i);
      exit(1);
    }
    if (i < dense_width) {
      float x = strtof(field, &end);
      if (!isfinite(x)) end = field; /* "inf" and "nan" are refused below, as is a number beyond float */
      /* What the model was trained on (dlrm_tf/data/features.py): log(max(x, 0) + 1), a missing value counts as 0. */
      dense[i] = x > 0 ? log1pf(x) : 0;
    } else {
      ids[i - dense_width] = (int32_t)strtol(field, &end, 10);
    }
    if (*end != '\0' || (i >= dense_width && end == field)) {
      fprintf(stderr, "score: line %ld, field %d: not a number: '%s'\n", number, i + 1, field);
      exit(1);
    }
  }
  if (line != NULL) {
    fprintf(stderr, "score: line %ld: more than %d fields\n", number, dense_width + id_width);
    exit(1);
  }
}

int main(int argc, char** argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: score MODEL.tflite < rows.tsv\n");
    return 2;
  }
  LiteRtEnvironment environment;
  LiteRtModel model;
  LiteRtOptions options;
  LiteRtCompiledModel compiled;
  check(LiteRtCreateEnvironment(0, NULL, &environment), "creating the environment");
  check(LiteRtCreateModelFromFile(environment, argv[1], &model), "loading the model");
  check(LiteRtCreateOptions(&options), "creating options");
  check(LiteRtSetOptionsHardwareAccelerators(options, kLiteRtHwAcceleratorCpu), "choosing the CPU");
  check(LiteRtCreateCompiledModel(environment, model, options, &compiled), "compiling the model");

  /* The signature by its name, its inputs by theirs: their order in the file is the converter's. */
  size_t signatures, signature = 0, inputs;
  LiteRtSignature score = NULL;
  check(LiteRtGetNumModelSignatures(model, &signatures), "counting signatures");
  for (size_t i = 0; i < signatures; i++) {
    LiteRtSignature candidate;
    const char* key;
    check(LiteRtGetModelSignature(model, i, &candidate), "reading a signature");
    check(LiteRtGetSignatureKey(candidate, &key), "reading a signature's name");
    if (strcmp(key, "score") == 0) score = candidate, signature = i;
  }
  if (score == NULL) check(1, "finding the signature 'score'");
  check(LiteRtGetNumSignatureInputs(score, &inputs), "counting inputs");
  if (inputs < 1 || inputs > 2) check(1, "finding one input or two");

  LiteRtTensorBuffer input[2], output;
  int width[2] = {0, 0}, dense_at = -1;
  for (size_t i = 0; i < inputs; i++) {
    const char* name;
    LiteRtTensor tensor;
    LiteRtRankedTensorType type;
    check(LiteRtGetSignatureInputName(score, i, &name), "reading an input's name");
    check(LiteRtGetSignatureInputTensorByIndex(score, i, &tensor), "reading an input");
    check(LiteRtGetRankedTensorType(tensor, &type), "reading an input's type");
    if (strcmp(name, "dense") == 0) dense_at = (int)i;
    width[i] = type.layout.dimensions[1];
    type.layout.dimensions[0] = BATCH;
    int dims[2] = {BATCH, width[i]};
    check(LiteRtCompiledModelResizeInputTensor(compiled, signature, i, dims, 2), "resizing an input");
    check(LiteRtCreateManagedTensorBuffer(environment, kLiteRtTensorBufferTypeHostMemory, &type, 4 * BATCH * (size_t)width[i],
                                          &input[i]), "allocating an input");
  }
  LiteRtRankedTensorType probability_type = {.element_type = kLiteRtElementTypeFloat32, .layout = {.rank = 2, .dimensions = {BATCH, 1}}};
  check(LiteRtCreateManagedTensorBuffer(environment, kLiteRtTensorBufferTypeHostMemory, &probability_type, 4 * BATCH, &output),
        "allocating the output");

  char line[MAX_LINE];
  long number = 0;
  int id_at = dense_at == 0 ? 1 : 0, dense_width = dense_at < 0 ? 0 : width[dense_at], more = 1;
  while (more) {
    void* data[2];
    const void* probability;
    int rows = 0;
    for (size_t i = 0; i < inputs; i++) {
      check(LiteRtLockTensorBuffer(input[i], &data[i], kLiteRtTensorBufferLockModeWrite), "locking an input");
      /* Rows that are left over in the last batch are zeros, a valid row. */
      memset(data[i], 0, 4 * BATCH * (size_t)width[i]);
    }
    while (rows < BATCH && (more = fgets(line, sizeof line, stdin) != NULL)) {
      float* dense = dense_at < 0 ? NULL : (float*)data[dense_at] + rows * dense_width;
      parse_row(line, ++number, dense, dense_width, (int32_t*)data[id_at] + rows * width[id_at], width[id_at]);
      rows++;
    }
    for (size_t i = 0; i < inputs; i++) check(LiteRtUnlockTensorBuffer(input[i]), "unlocking an input");
    if (rows == 0) break;
    check(LiteRtRunCompiledModel(compiled, signature, inputs, input, 1, &output), "running the model");
    check(LiteRtLockTensorBuffer(output, (void**)&probability, kLiteRtTensorBufferLockModeRead), "locking the output");
    for (int i = 0; i < rows; i++) printf("%.9g\n", ((const float*)probability)[i]);
    check(LiteRtUnlockTensorBuffer(output), "unlocking the output");
  }
  for (size_t i = 0; i < inputs; i++) LiteRtDestroyTensorBuffer(input[i]);
  LiteRtDestroyTensorBuffer(output);
  LiteRtDestroyCompiledModel(compiled);
  LiteRtDestroyOptions(options);
  LiteRtDestroyModel(model);
  LiteRtDestroyEnvironment(environment);
  return 0;
}
