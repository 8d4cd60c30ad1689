/* SPDX-License-Identifier: Apache-2.0 */
/* npy.c: arrays in .npy files, good and hostile.
 *
 * Goal: what numpy writes is read, what we write is what numpy writes, and nothing that a file says
 * makes the reader leave the file. Method: files built in memory from header texts, each with the
 * errno it must end in; every cut of a good file; seeded damage of a good file, after which a file
 * that is still accepted must describe exactly the bytes that are there; round trips through a
 * temporary folder. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "client/cli_npy.c" /* NOLINT(bugprone-suspicious-include): no library holds it */

#define FILE_MAX 4096u

static char folder[] = "/tmp/kvrecall-npy-XXXXXX";

/* A file with this header text and so many bytes behind it. */
static struct kvr_span build(
	uint8_t *memory, unsigned major, const char *header, size_t length, size_t data_bytes)
{
	size_t first = major == 1 ? 10 : 12;

	assert_true(first + length + data_bytes <= FILE_MAX);
	memset(memory, 0, FILE_MAX);
	memcpy(memory, "\x93NUMPY\0", 8);
	memory[6] = (uint8_t)major;
	for (size_t i = 0; i < first - 8; i++)
		memory[8 + i] = (uint8_t)(length >> 8 * i);
	memcpy(memory + first, header, length);
	for (size_t i = 0; i < data_bytes; i++)
		memory[first + length + i] = (uint8_t)(i * 7 + 1);
	return (struct kvr_span){memory, first + length + data_bytes};
}

/* ---- reading --------------------------------------------------------------------------------- */

static void test_reads_what_numpy_writes(void **state)
{
	static const char *const headers[] = {
		"{'descr': '<f2', 'fortran_order': False, 'shape': (3, 4), }       \n",
		"{'descr': '<f2', 'fortran_order': False, 'shape': (3, 4)}\n",
		"{\"shape\":(3,4,),\"fortran_order\":False,\"descr\":\"<f2\",}",
		"{'shape': (3L, 4L), 'fortran_order': False, 'descr': '<f2'}\n",
	};
	uint8_t memory[FILE_MAX];

	(void)state;
	for (unsigned major = 1; major <= 2; major++)
		for (size_t i = 0; i < sizeof(headers) / sizeof(headers[0]); i++) {
			struct kvr_span file =
				build(memory, major, headers[i], strlen(headers[i]), 24);
			struct kvr_npy_error why = {{0}, NULL};
			struct kvr_npy npy;

			if (kvr_npy_parse(file, "file", &npy, &why))
				fail_msg("%s: %s", headers[i], why.subject);
			assert_int_equal(npy.type, KVR_NPY_F2);
			assert_int_equal(npy.dim_count, 2);
			assert_int_equal(npy.shape[0], 3);
			assert_int_equal(npy.shape[1], 4);
			assert_int_equal(npy.element_count, 12);
			assert_ptr_equal(npy.data.data, file.data + file.bytes - 24);
			assert_int_equal(npy.data.bytes, 24);
		}
}

static void test_reads_every_type(void **state)
{
	static const struct {
		const char *descr;
		enum kvr_npy_type type;
		size_t bytes;
	} cases[] = {
		{"<f2", KVR_NPY_F2, 2},
		{"<f4", KVR_NPY_F4, 4},
		{"<i4", KVR_NPY_I4, 4},
		{"<u4", KVR_NPY_U4, 4},
		{"<i8", KVR_NPY_I8, 8},
		{"<u2", KVR_NPY_U2, 2},
		{"|V2", KVR_NPY_V2, 2},
		{"<V2", KVR_NPY_V2, 2},
	};
	uint8_t memory[FILE_MAX];
	char header[128];

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		int length = snprintf(header, sizeof(header),
			"{'descr': '%s', 'fortran_order': False, 'shape': (5,), }\n",
			cases[i].descr);
		struct kvr_span file = build(memory, 1, header, (size_t)length, 5 * cases[i].bytes);
		struct kvr_npy_error why = {{0}, NULL};
		struct kvr_npy npy;

		assert_int_equal(kvr_npy_parse(file, "file", &npy, &why), 0);
		assert_int_equal(npy.type, cases[i].type);
		assert_int_equal(npy.element_bytes, cases[i].bytes);
	}
}

/* ---- refusing -------------------------------------------------------------------------------- */

#define DESCR "'descr': '<f2', "
#define ORDER "'fortran_order': False, "
#define SHAPE "'shape': (3, 4), "

static void test_refuses_bad_headers(void **state)
{
	static const struct {
		const char *header;
		int error;
		const char *names; /* what the message has to say */
	} cases[] = {
		{"{'descr': '>f2', " ORDER SHAPE "}", ENOTSUP, "big-endian"},
		{"{'descr': '<f8', " ORDER SHAPE "}", ENOTSUP, "<f8"},
		{"{'descr': '|O', " ORDER SHAPE "}", ENOTSUP, "|O"},
		{"{'descr': [('a', '<f2')], " ORDER SHAPE "}", ENOTSUP, "structured"},
		{"{" DESCR "'fortran_order': True, " SHAPE "}", ENOTSUP, "Fortran"},
		{"{" DESCR "'fortran_order': 0, " SHAPE "}", EBADMSG, "fortran_order"},
		{"{" DESCR ORDER "'shape': (), }", ENOTSUP, "single number"},
		{"{" DESCR ORDER "'shape': (12), }", EBADMSG, "shape"},
		{"{" DESCR ORDER "'shape': 12, }", EBADMSG, "tuple"},
		{"{" DESCR ORDER "'shape': (3, 4", EBADMSG, "shape"},
		{"{" DESCR ORDER "'shape': (,), }", EBADMSG, "dimension"},
		{"{" DESCR ORDER "'shape': (-3, -4), }", EBADMSG, "dimension"},
		{"{" DESCR ORDER "'shape': (3, 0), }", ENOTSUP, "empty"},
		{"{" DESCR ORDER "'shape': (0, 4), }", ENOTSUP, "empty"},
		{"{" DESCR ORDER "'shape': (1,1,1,1,1,1,1,1,12), }", ENOTSUP, "dimensions"},
		{"{" DESCR ORDER "'shape': (99999999999999999999, 4), }", EOVERFLOW, "64 bits"},
		/* Products that wrap around to 24 bytes, and to nothing. */
		{"{" DESCR ORDER "'shape': (9223372036854775820, 1), }", EOVERFLOW, "64 bits"},
		{"{" DESCR ORDER "'shape': (4294967296, 4294967296), }", EOVERFLOW, "64 bits"},
		{"{" DESCR ORDER "'shape': (3, 5), }", EBADMSG, "cut off"},
		{"{" DESCR ORDER "'shape': (3, 3), }", EBADMSG, "behind the array"},
		{"{" DESCR ORDER "}", EBADMSG, "missing"},
		{"{" DESCR SHAPE "}", EBADMSG, "missing"},
		{"{" ORDER SHAPE "}", EBADMSG, "missing"},
		{"{}", EBADMSG, "missing"},
		{"", EBADMSG, "dictionary"},
		{"{" DESCR DESCR ORDER SHAPE "}", EBADMSG, "twice"},
		{"{" DESCR ORDER SHAPE "'x': 1}", EBADMSG, "key"},
		{"{" DESCR ORDER SHAPE "} x", EBADMSG, "behind the dictionary"},
		{"{" DESCR ORDER SHAPE, EBADMSG, "string"},
		{"{'descr' '<f2', " ORDER SHAPE "}", EBADMSG, "colon"},
		{"{'descr': '<f2\\x00', " ORDER SHAPE "}", EBADMSG, "character"},
		{"{'descr': '\033[2J', " ORDER SHAPE "}", EBADMSG, "character"},
		{"{'descr': '<f2<f2<f2<f2<f2<f2', " ORDER SHAPE "}", EBADMSG, "does not end"},
		{"__import__('os')", EBADMSG, "dictionary"},
	};
	uint8_t memory[FILE_MAX];

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct kvr_span file =
			build(memory, 1, cases[i].header, strlen(cases[i].header), 24);
		struct kvr_npy_error why = {{0}, NULL};
		struct kvr_npy npy = {.dim_count = 77};
		int error = kvr_npy_parse(file, "file", &npy, &why);

		if (error != -cases[i].error || !strstr(why.subject, cases[i].names))
			fail_msg("%s: %d, %s", cases[i].header, error, why.subject);
		assert_int_equal(npy.dim_count, 77); /* written only on success */
		assert_non_null(why.remedy);
	}
}

static void test_refuses_bad_beginnings(void **state)
{
	static const char header[] = "{" DESCR ORDER SHAPE "}\n";
	static const struct {
		size_t at;
		uint8_t value;
		int error;
	} cases[] = {
		{0, 'x', EBADMSG},                   /* magic */
		{5, 'y', EBADMSG},                   /* magic */
		{6, 0, ENOTSUP},                     /* major version */
		{6, 3, ENOTSUP}, {7, 1, ENOTSUP},    /* minor version */
		{8, 0xff, EBADMSG},                  /* header length: beyond the file */
		{9, 0x80, EBADMSG}, {8, 1, EBADMSG}, /* and too short */
	};
	uint8_t memory[FILE_MAX];
	struct kvr_npy_error why = {{0}, NULL};
	struct kvr_npy npy;
	struct kvr_span file;

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		file = build(memory, 1, header, strlen(header), 24);
		memory[cases[i].at] = cases[i].value;
		assert_int_equal(kvr_npy_parse(file, "file", &npy, &why), -cases[i].error);
	}
	/* Version 2 can claim a header of 4 GiB. */
	file = build(memory, 2, header, strlen(header), 24);
	memset(memory + 8, 0xff, 4);
	assert_int_equal(kvr_npy_parse(file, "file", &npy, &why), -EBADMSG);
	assert_non_null(strstr(why.subject, "limit"));
}

static void test_refuses_every_cut(void **state)
{
	static const char header[] = "{" DESCR ORDER SHAPE "}\n";
	uint8_t memory[FILE_MAX];
	struct kvr_span file = build(memory, 1, header, strlen(header), 24);

	(void)state;
	for (size_t bytes = 0; bytes <= file.bytes + 1; bytes++) {
		/* A copy of exactly this size, so that the sanitizer sees a read past it. */
		uint8_t *copy = calloc(1, bytes ? bytes : 1);
		struct kvr_span cut = {copy, bytes};
		struct kvr_npy_error why = {{0}, NULL};
		struct kvr_npy npy;

		assert_non_null(copy);
		memcpy(copy, memory, bytes);
		assert_int_equal(
			kvr_npy_parse(cut, "file", &npy, &why), bytes == file.bytes ? 0 : -EBADMSG);
		free(copy);
	}
}

static void test_survives_damage(void **state)
{
	static const char header[] = "{" DESCR ORDER SHAPE "}\n";
	const uint64_t seed = 20251121;
	uint64_t random = seed;
	unsigned accepted = 0;

	(void)state;
	for (unsigned round = 0; round < 200000; round++) {
		uint8_t memory[FILE_MAX];
		struct kvr_span file = build(memory, 1, header, strlen(header), 24);
		struct kvr_npy_error why = {{0}, NULL};
		struct kvr_npy npy;
		uint64_t bytes = 1;

		for (unsigned flips = 0; flips <= round % 3; flips++) {
			random = random * 6364136223846793005u + 1442695040888963407u;
			memory[6 + (random >> 33) % (file.bytes - 30)] = (uint8_t)(random >> 25);
		}
		if (kvr_npy_parse(file, "file", &npy, &why))
			continue;
		accepted++;
		for (uint32_t i = 0; i < npy.dim_count; i++)
			bytes *= npy.shape[i];
		bytes *= npy.element_bytes;
		if (bytes != npy.data.bytes ||
			npy.data.data + npy.data.bytes != file.data + file.bytes)
			fail_msg("seed %llu, round %u", (unsigned long long)seed, round);
	}
	/* Some damage is harmless (a space, another type of the same size); else nothing was tried. */
	assert_true(accepted > 0);
}

/* ---- files ----------------------------------------------------------------------------------- */

static void test_round_trip(void **state)
{
	static const char expected[] =
		"{'descr': '<f2', 'fortran_order': False, 'shape': (6, 2, 4, 64), }";
	const uint64_t shape[4] = {6, 2, 4, 64};
	struct kvr_npy_error why = {{0}, NULL};
	struct kvr_npy npy = {0};
	char path[64];

	(void)state;
	snprintf(path, sizeof(path), "%s/a.npy", folder);
	assert_int_equal(kvr_npy_create(path, KVR_NPY_F2, shape, 4, &npy, &why), 0);
	assert_int_equal(access(path, F_OK), -1); /* not before the commit */
	assert_int_equal(npy.data.bytes, 6 * 2 * 4 * 64 * 2);
	for (size_t i = 0; i < npy.data.bytes; i++)
		npy.data.data[i] = (uint8_t)(i % 251);
	assert_int_equal(kvr_npy_commit(&npy, &why), 0);
	kvr_npy_close(&npy);

	assert_int_equal(kvr_npy_open(path, &npy, &why), 0);
	assert_int_equal(npy.type, KVR_NPY_F2);
	assert_memory_equal(npy.shape, shape, sizeof(shape));
	for (size_t i = 0; i < npy.data.bytes; i++)
		assert_int_equal(npy.data.data[i], i % 251);
	/* As numpy writes it: text, spaces, a newline, the elements at a multiple of 64. */
	assert_memory_equal(npy.file.data + 10, expected, strlen(expected));
	assert_int_equal(npy.data.data - npy.file.data, 128);
	for (size_t i = 10 + strlen(expected); i < 127; i++)
		assert_int_equal(npy.file.data[i], ' ');
	assert_int_equal(npy.file.data[127], '\n');
	kvr_npy_close(&npy);
	assert_int_equal(unlink(path), 0);
}

static void test_abandoned_file_is_gone(void **state)
{
	const uint64_t shape[1] = {1000};
	struct kvr_npy_error why = {{0}, NULL};
	struct kvr_npy npy = {0};
	char path[64];

	(void)state;
	snprintf(path, sizeof(path), "%s/b.npy", folder);
	assert_int_equal(kvr_npy_create(path, KVR_NPY_U4, shape, 1, &npy, &why), 0);
	assert_int_equal(access(npy.temporary, F_OK), 0);
	kvr_npy_close(&npy);
	assert_int_equal(rmdir(folder), 0); /* only an empty folder goes */
	assert_int_equal(mkdir(folder, 0700), 0);
}

static void test_refuses_files(void **state)
{
	const uint64_t shape[1] = {4}, wide[2] = {UINT64_MAX, 2};
	struct kvr_npy_error why = {{0}, NULL};
	struct kvr_npy npy = {0};
	char path[64];
	int fd;

	(void)state;
	snprintf(path, sizeof(path), "%s/none/c.npy", folder);
	assert_int_equal(kvr_npy_open(path, &npy, &why), -ENOENT);
	assert_non_null(strstr(why.subject, path));
	assert_int_equal(kvr_npy_create(path, KVR_NPY_U4, shape, 1, &npy, &why), -ENOENT);
	assert_int_equal(kvr_npy_open(folder, &npy, &why), -EISDIR);
	assert_int_equal(kvr_npy_open("/dev/zero", &npy, &why), -ESPIPE);
	assert_int_equal(kvr_npy_create(folder, KVR_NPY_U4, wide, 2, &npy, &why), -EOVERFLOW);

	snprintf(path, sizeof(path), "%s/empty.npy", folder);
	fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	close(fd);
	assert_int_equal(kvr_npy_open(path, &npy, &why), -EBADMSG);
	assert_int_equal(unlink(path), 0);
}

static int make_folder(void **state)
{
	(void)state;
	return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
	(void)state;
	return rmdir(folder);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_reads_what_numpy_writes),
		cmocka_unit_test(test_reads_every_type),
		cmocka_unit_test(test_refuses_bad_headers),
		cmocka_unit_test(test_refuses_bad_beginnings),
		cmocka_unit_test(test_refuses_every_cut),
		cmocka_unit_test(test_survives_damage),
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_abandoned_file_is_gone),
		cmocka_unit_test(test_refuses_files),
	};

	return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
