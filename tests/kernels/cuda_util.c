/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_util.c: launches of the CUDA sources on the CPU; see cuda_util.h. */
#include "tests/kernels/cuda_util.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

void cuda_run(int (*launch)(const void *owner), const void *owner,
	const struct oracle_guard *const *outputs, uint32_t output_count)
{
	uint8_t *first[16] = {NULL};

	assert_true(output_count <= sizeof(first) / sizeof(first[0]));
	for (uint32_t order = 0; order < KVR_EMULATE_ORDERS; order++) {
		int error;

		for (uint32_t i = 0; i < output_count; i++)
			memset(outputs[i]->data, CUDA_UNTOUCHED, outputs[i]->bytes);
		kvr_emulate_begin((enum kvr_emulate_order)order, order + 1);
		error = launch(owner);
		if (kvr_emulate_fault())
			print_error("%s\n", kvr_emulate_fault());
		assert_null(kvr_emulate_fault());
		assert_int_equal(error, 0);
		for (uint32_t i = 0; i < output_count; i++) {
			oracle_guard_check(outputs[i]);
			if (!first[i]) {
				first[i] = malloc(outputs[i]->bytes + 1);
				assert_non_null(first[i]);
				memcpy(first[i], outputs[i]->data, outputs[i]->bytes);
			}
			assert_memory_equal(first[i], outputs[i]->data, outputs[i]->bytes);
		}
	}
	for (uint32_t i = 0; i < output_count; i++)
		free(first[i]);
}
