/* SPDX-License-Identifier: Apache-2.0 */
/* input.c: see input.h. */
#include "bench/quality/input.h"

#include <stdlib.h>

void quality_input_close(struct quality_input *input)
{
	quality_rows_close(&input->prompt);
	quality_rows_close(&input->tail);
	free(input->queries);
	free(input->tokens);
	free(input->reference);
	*input = (struct quality_input){0};
}
