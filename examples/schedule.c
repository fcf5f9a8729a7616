/* Reads prompts of token ids from standard input, one a line, has all of them answered side by side, and prints the ids
 * of each answer, one a line: C, linked with libsala. Usage: schedule BUNDLE */

#include <sala.h>
#include <stdio.h>
#include <stdlib.h>

/* Ends the program if there is an error. */
static void check(sala_error* error) {
  if (error == NULL) return;
  fprintf(stderr, "schedule: %s: %s\n", sala_error_name(error), sala_error_message(error));
  sala_error_destroy(error);
  exit(1);
}

/* Takes one line of token ids as the prompt of a new session. */
static sala_answer* submit(const sala_model* model, sala_scheduler* scheduler, char* line, size_t bytes) {
  sala_generate_options generate = SALA_GENERATE_OPTIONS_INIT;
  sala_request_options options = SALA_REQUEST_OPTIONS_INIT;
  sala_session* session = NULL;
  sala_answer* answer = NULL;
  int32_t* ids = malloc((bytes / 2 + 1) * sizeof *ids);
  size_t count = 0;
  char* end = line;
  if (ids == NULL) abort();
  for (long id = strtol(line, &end, 10); end != line; id = strtol(line, &end, 10)) {
    ids[count++] = (int32_t)id;
    line = end;
  }
  generate.max_new_tokens = 16;
  options.generate = &generate;
  check(sala_session_create(model, NULL, &session));
  check(sala_scheduler_submit(scheduler, session, ids, count, &options, &answer));
  sala_session_destroy(session); /* the answer keeps it for as long as it needs it */
  free(ids);
  return answer;
}

static void print(sala_answer* answer) {
  int32_t token, finish;
  for (;;) {
    check(sala_answer_next(answer, &token, &finish));
    if (finish != SALA_FINISH_NONE) break;
    printf("%d ", (int)token);
    fflush(stdout);
  }
  printf("\n");
}

int main(int count, char** arguments) {
  sala_model* model = NULL;
  sala_scheduler* scheduler = NULL;
  sala_answer** answers = NULL;
  char* line = NULL;
  size_t size = 0, prompts = 0;
  if (count != 2) {
    fprintf(stderr, "usage: schedule BUNDLE\n");
    return 2;
  }
  check(sala_model_load(arguments[1], NULL, &model));
  check(sala_scheduler_create(model, NULL, &scheduler));
  while (getline(&line, &size, stdin) > 0) {
    answers = realloc(answers, (prompts + 1) * sizeof *answers);
    if (answers == NULL) abort();
    answers[prompts++] = submit(model, scheduler, line, size);
  }
  free(line);
  for (size_t i = 0; i < prompts; ++i) {
    print(answers[i]);
    sala_answer_destroy(answers[i]);
  }
  free(answers);
  sala_scheduler_destroy(scheduler);
  sala_model_destroy(model);
  return 0;
}
