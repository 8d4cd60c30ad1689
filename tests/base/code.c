/* SPDX-License-Identifier: Apache-2.0 */
/* code.c: goal: every code on the wire has a number that stays, a name, an errno and a remedy.
 * Method: the table is compared with the numbers written down here; other numbers are unknown. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>

#include "base/code.h"
#include "base/limits.h"

/* In the order of their numbers, from 0. A new code is appended; nothing else changes. */
static const char *const names[] = {"OK", "MALFORMED", "VERSION", "SESSION", "LIMIT", "REGION",
	"NO_MODEL", "GEOMETRY", "NO_SEQUENCE", "POSITION", "TOKENS", "NOT_FINITE", "FULL", "QUOTA",
	"BUSY", "ROWS", "NO_SEGMENT", "IN_USE", "RANGE", "CREDIT", "INTERNAL", "TIMEOUT",
	"ARGUMENT", "LOST", "DENIED", "NOT_STORED", "UNREADABLE"};

#define COUNT (sizeof(names) / sizeof(names[0]))

static void numbers_stay(void **state)
{
	(void)state;
	for (uint32_t code = 0; code < COUNT; code++)
		assert_string_equal(kvr_code_name(code), names[code]);
}

static void every_refusal_has_a_remedy(void **state)
{
	(void)state;
	assert_int_equal(kvr_code_errno(KVR_CODE_OK), 0);
	for (uint32_t code = 1; code < COUNT; code++) {
		assert_true(kvr_code_errno(code) > 0);
		assert_true(kvr_code_remedy(code)[0] != '\0');
		assert_true(strlen(kvr_code_remedy(code)) < KVR_TEXT_MAX);
	}
}

/* A later daemon may send codes that this build has never heard of. */
static void unknown_codes(void **state)
{
	static const uint32_t unknown[] = {COUNT, 1000, UINT32_MAX};

	(void)state;
	for (int i = 0; i < 3; i++) {
		assert_string_equal(kvr_code_name(unknown[i]), "UNKNOWN");
		assert_int_equal(kvr_code_errno(unknown[i]), EPROTO);
		assert_string_equal(kvr_code_remedy(unknown[i]), "");
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(numbers_stay),
		cmocka_unit_test(every_refusal_has_a_remedy),
		cmocka_unit_test(unknown_codes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
