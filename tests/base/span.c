/* SPDX-License-Identifier: Apache-2.0 */
/* span.c: goal: no offset and length, however large, give a part that is not inside its span.
 * Method: every offset and length around a small span, and around the ends of 64 bits. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "base/span.h"

#define BYTES 20u

static const uint64_t bases[] = {0, UINT32_MAX - 40ull, INT64_MAX - 40ull, UINT64_MAX - 40ull};

static void every_part(void **state)
{
	uint8_t memory[BYTES];
	struct kvr_span span = {memory, BYTES};
	unsigned inside_count = 0;

	(void)state;
	for (unsigned i = 0; i < 4 * 41; i++) {
		for (unsigned j = 0; j < 4 * 41; j++) {
			uint64_t offset = bases[i / 41] + i % 41;
			uint64_t bytes = bases[j / 41] + j % 41;
			struct kvr_span part = kvr_span_part(span, offset, bytes);
			/* In 128 bits the sum cannot wrap. */
			int inside = (unsigned __int128)offset + bytes <= BYTES;

			assert_ptr_equal(part.data, inside ? memory + offset : NULL);
			assert_int_equal(part.bytes, inside ? bytes : 0);
			inside_count += (unsigned)inside;
		}
	}
	assert_int_equal(inside_count, (BYTES + 1) * (BYTES + 2) / 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(every_part)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
