/* SPDX-License-Identifier: Apache-2.0 */
/* cli_npy.c: arrays in .npy files (table in cli_npy.h; source: numpy.lib.format, NEP 1).
 *
 * Reads exactly the dictionaries that numpy writes, in any order of keys and with any spaces; no
 * other Python. Depends on base/ alone, so that tests and fuzzers include this file.
 *
 * Invariants:
 *   N1  A parsed array: element_count * element_bytes = data.bytes, and data lies inside file.
 *   N2  `temporary` names a file that exists, or is NULL.
 *
 * Threads: one. kvr_npy_create sets the umask for a moment. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/assert.h"
#include "client/cli_npy.h"

#define MAGIC          "\x93NUMPY"
#define MAGIC_BYTES    6u
#define FILE_BYTES_MIN 12u /* up to the header, in version 2; version 1 is longer too */
#define DATA_ALIGN     64u

static const struct {
	enum kvr_npy_type type;
	const char *descr;
	uint32_t bytes;
} types[] = {
	/* the first seven in the order of their numbers */
	{KVR_NPY_F2, "<f2", 2},
	{KVR_NPY_F4, "<f4", 4},
	{KVR_NPY_I4, "<i4", 4},
	{KVR_NPY_U4, "<u4", 4},
	{KVR_NPY_I8, "<i8", 8},
	{KVR_NPY_U2, "<u2", 2},
	{KVR_NPY_V2, "|V2", 2},
	{KVR_NPY_V2, "<V2", 2},
};

#define TYPE_COUNT (sizeof(types) / sizeof(types[0]))

static const char remedy_file[] = "write it again, with numpy.save";
static const char remedy_type[] =
	"convert it first: numpy.ascontiguousarray(a, '<f2'), or '<f4'; token ids as '<u4'";

/* A place in the header. */
struct cursor {
	const char *at;
	const char *end;
	const char *path;
	struct kvr_npy_error *error;
};

__attribute__((format(printf, 4, 5))) static int refuse(
	struct kvr_npy_error *ret_error, int error, const char *remedy, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(ret_error->subject, sizeof(ret_error->subject), format, arguments);
	va_end(arguments);
	ret_error->remedy = remedy;
	return -error;
}

static int refuse_header(const struct cursor *cursor, const char *what)
{
	return refuse(cursor->error, EBADMSG, remedy_file, "%s: damaged .npy header: %s",
		cursor->path, what);
}

/* ---- the header ------------------------------------------------------------------------------ */

static void skip_spaces(struct cursor *cursor)
{
	while (cursor->at < cursor->end &&
		(*cursor->at == ' ' || *cursor->at == '\n' || *cursor->at == '\t'))
		cursor->at++;
}

/* Skips spaces, then takes `c` if it is next. */
static bool take(struct cursor *cursor, char c)
{
	skip_spaces(cursor);
	if (cursor->at == cursor->end || *cursor->at != c)
		return false;
	cursor->at++;
	return true;
}

static bool take_word(struct cursor *cursor, const char *word)
{
	size_t length = strlen(word);

	skip_spaces(cursor);
	if ((size_t)(cursor->end - cursor->at) < length || memcmp(cursor->at, word, length) != 0)
		return false;
	cursor->at += length;
	return true;
}

/* A Python string without escapes, copied into `into`. */
static int read_string(struct cursor *cursor, char *into, size_t into_bytes)
{
	size_t length = 0;
	char quote;

	skip_spaces(cursor);
	if (cursor->at == cursor->end || (*cursor->at != '\'' && *cursor->at != '"'))
		return refuse_header(cursor, "a string was expected");
	quote = *cursor->at++;
	for (;; cursor->at++) {
		if (cursor->at == cursor->end || length + 1 == into_bytes)
			return refuse_header(cursor, "a string does not end");
		if (*cursor->at == quote)
			break;
		/* Control characters would go into error messages, and so to a terminal. */
		if (*cursor->at == '\\' || *cursor->at < ' ' || *cursor->at > '~')
			return refuse_header(cursor, "an unexpected character in a string");
		into[length++] = *cursor->at;
	}
	cursor->at++;
	into[length] = 0;
	return 0;
}

static int read_descr(struct cursor *cursor, struct kvr_npy *npy)
{
	char descr[16];
	int error;

	skip_spaces(cursor);
	if (cursor->at < cursor->end && *cursor->at == '[')
		return refuse(cursor->error, ENOTSUP, remedy_type,
			"%s: structured arrays are not served", cursor->path);
	error = read_string(cursor, descr, sizeof(descr));
	if (error)
		return error;
	for (size_t i = 0; i < TYPE_COUNT; i++)
		if (!strcmp(descr, types[i].descr)) {
			npy->type = types[i].type;
			npy->element_bytes = types[i].bytes;
			return 0;
		}
	return refuse(cursor->error, ENOTSUP, remedy_type, "%s: %s of type '%s' are not served",
		cursor->path, descr[0] == '>' ? "big-endian elements" : "elements", descr);
}

static int read_order(struct cursor *cursor)
{
	if (take_word(cursor, "False"))
		return 0;
	if (take_word(cursor, "True"))
		return refuse(cursor->error, ENOTSUP,
			"save numpy.ascontiguousarray(a), which is in C order",
			"%s: Fortran order is not served", cursor->path);
	return refuse_header(cursor, "fortran_order is neither True nor False");
}

static int read_dim(struct cursor *cursor, uint64_t *ret_dim)
{
	uint64_t dim = 0;
	const char *first;

	skip_spaces(cursor);
	first = cursor->at;
	for (; cursor->at < cursor->end && *cursor->at >= '0' && *cursor->at <= '9'; cursor->at++)
		if (__builtin_mul_overflow(dim, 10, &dim) ||
			__builtin_add_overflow(dim, (uint64_t)(*cursor->at - '0'), &dim))
			return refuse(cursor->error, EOVERFLOW, remedy_file,
				"%s: a dimension exceeds 64 bits", cursor->path);
	if (cursor->at == first)
		return refuse_header(cursor, "a dimension was expected");
	if (cursor->at < cursor->end && *cursor->at == 'L')
		cursor->at++; /* Python 2 wrote long integers so */
	*ret_dim = dim;
	return 0;
}

static int read_shape(struct cursor *cursor, struct kvr_npy *npy)
{
	if (!take(cursor, '('))
		return refuse_header(cursor, "the shape is no tuple");
	npy->dim_count = 0;
	while (!take(cursor, ')')) {
		int error;

		if (npy->dim_count == KVR_NPY_DIMS_MAX)
			return refuse(cursor->error, ENOTSUP, "reshape it",
				"%s: more than %u dimensions", cursor->path, KVR_NPY_DIMS_MAX);
		error = read_dim(cursor, &npy->shape[npy->dim_count]);
		if (error)
			return error;
		npy->dim_count++;
		if (!take(cursor, ',')) {
			/* "(5)" is a number in Python, not a tuple. */
			if (npy->dim_count == 1 || !take(cursor, ')'))
				return refuse_header(cursor, "the shape does not end");
			break;
		}
	}
	if (!npy->dim_count)
		return refuse(cursor->error, ENOTSUP, "save it with one dimension or more",
			"%s: a single number is no array", cursor->path);
	return 0;
}

static int read_entry(struct cursor *cursor, struct kvr_npy *npy, unsigned *seen)
{
	char key[16];
	unsigned bit;
	int error = read_string(cursor, key, sizeof(key));

	if (error)
		return error;
	if (!take(cursor, ':'))
		return refuse_header(cursor, "a colon was expected");
	bit = !strcmp(key, "descr") ? 1 : !strcmp(key, "shape") ? 2 : 0;
	if (!strcmp(key, "fortran_order"))
		bit = 4;
	if (!bit)
		return refuse_header(cursor, "a key that is not descr, fortran_order or shape");
	if (*seen & bit)
		return refuse_header(cursor, "a key stands there twice");
	*seen |= bit;
	if (bit == 4)
		return read_order(cursor);
	return bit == 1 ? read_descr(cursor, npy) : read_shape(cursor, npy);
}

static int read_header(struct cursor *cursor, struct kvr_npy *npy)
{
	unsigned seen = 0;

	if (!take(cursor, '{'))
		return refuse_header(cursor, "it is no dictionary");
	while (!take(cursor, '}')) { /* at most three rounds: a key may stand there once */
		int error = read_entry(cursor, npy, &seen);

		if (error)
			return error;
		if (take(cursor, ','))
			continue;
		if (!take(cursor, '}'))
			return refuse_header(cursor, "the dictionary does not end");
		break;
	}
	skip_spaces(cursor);
	if (cursor->at != cursor->end)
		return refuse_header(cursor, "something stands behind the dictionary");
	if (seen != 7)
		return refuse_header(cursor, "descr, fortran_order or shape is missing");
	return 0;
}

/* ---- the file -------------------------------------------------------------------------------- */

/* Finds the header's text. Returns its offset, or -errno; *ret_bytes is its length. */
static int find_header(
	struct kvr_span file, const char *path, size_t *ret_bytes, struct kvr_npy_error *ret_error)
{
	const uint8_t *data = file.data;
	size_t first, bytes;

	if (!data || file.bytes < FILE_BYTES_MIN || memcmp(data, MAGIC, MAGIC_BYTES) != 0)
		return refuse(ret_error, EBADMSG, "give an array written by numpy.save",
			"%s: not a .npy file", path);
	if ((data[6] != 1 && data[6] != 2) || data[7] != 0)
		return refuse(ret_error, ENOTSUP, "save it as version 1.0 or 2.0",
			"%s: .npy version %u.%u is not served", path, data[6], data[7]);
	first = data[6] == 1 ? 10 : 12;
	bytes = (size_t)data[8] | (size_t)data[9] << 8;
	if (data[6] == 2)
		bytes |= (size_t)data[10] << 16 | (size_t)data[11] << 24;
	if (bytes > KVR_NPY_HEADER_BYTES)
		return refuse(ret_error, EBADMSG, remedy_file,
			"%s: a header of %zu bytes exceeds the limit of %u", path, bytes,
			KVR_NPY_HEADER_BYTES);
	if (bytes > file.bytes - first)
		return refuse(ret_error, EBADMSG, remedy_file,
			"%s: the file is cut off inside its header", path);
	*ret_bytes = bytes;
	return (int)first;
}

/* Multiplies the shape out. */
static int count_bytes(
	const char *path, struct kvr_npy *npy, uint64_t *ret_bytes, struct kvr_npy_error *ret_error)
{
	uint64_t bytes = npy->element_bytes;

	npy->element_count = 1;
	for (uint32_t i = 0; i < npy->dim_count; i++) {
		if (!npy->shape[i])
			return refuse(ret_error, ENOTSUP, "give an array with elements",
				"%s: the array is empty", path);
		if (__builtin_mul_overflow(bytes, npy->shape[i], &bytes))
			return refuse(ret_error, EOVERFLOW, remedy_file,
				"%s: the shape exceeds 64 bits", path);
		npy->element_count *= npy->shape[i];
	}
	*ret_bytes = bytes;
	return 0;
}

int kvr_npy_parse(struct kvr_span file, const char *path, struct kvr_npy *ret_npy,
	struct kvr_npy_error *ret_error)
{
	struct kvr_npy npy = {0};
	struct cursor cursor;
	size_t header_bytes = 0;
	uint64_t bytes = 0;
	int first = find_header(file, path, &header_bytes, ret_error);
	int error;

	if (first < 0)
		return first;
	cursor.at = (const char *)file.data + first;
	cursor.end = cursor.at + header_bytes;
	cursor.path = path;
	cursor.error = ret_error;
	error = read_header(&cursor, &npy);
	if (!error)
		error = count_bytes(path, &npy, &bytes, ret_error);
	if (error)
		return error;
	npy.data = kvr_span_part(file, (uint64_t)first + header_bytes, bytes);
	if (!npy.data.data)
		return refuse(ret_error, EBADMSG, remedy_file,
			"%s: the file is cut off: %zu bytes of elements, not %" PRIu64, path,
			file.bytes - (size_t)first - header_bytes, bytes);
	if (file.bytes - (size_t)first - header_bytes != bytes)
		return refuse(ret_error, EBADMSG, remedy_file,
			"%s: %zu bytes stand behind the array", path,
			file.bytes - (size_t)first - header_bytes - (size_t)bytes);
	KVR_ASSERT(npy.element_count * npy.element_bytes == npy.data.bytes); /* N1 */
	*ret_npy = npy;
	return 0;
}

int kvr_npy_open(const char *path, struct kvr_npy *ret_npy, struct kvr_npy_error *ret_error)
{
	struct kvr_span file = {NULL, 0};
	struct stat stat = {0};
	int error = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

	if (fd < 0 || fstat(fd, &stat))
		error = errno;
	else if (!S_ISREG(stat.st_mode))
		error = S_ISDIR(stat.st_mode) ? EISDIR : ESPIPE;
	/* An empty file has no mapping; it is refused as no .npy file below. */
	if (!error && stat.st_size > 0) {
		file.bytes = (size_t)stat.st_size;
		file.data = mmap(NULL, file.bytes, PROT_READ, MAP_PRIVATE, fd, 0);
		error = file.data == MAP_FAILED ? errno : 0;
	}
	if (fd >= 0)
		close(fd);
	if (error)
		return refuse(ret_error, error, "name a regular file that can be read", "%s: %s",
			path, strerror(error));
	error = kvr_npy_parse(file, path, ret_npy, ret_error);
	if (!error)
		ret_npy->file = file;
	else if (file.data)
		munmap(file.data, file.bytes);
	return error;
}

/* ---- writing --------------------------------------------------------------------------------- */

/* Writes magic, lengths and header, padded so that the elements are aligned. Returns the bytes. */
static size_t write_header(const struct kvr_npy *npy, char *into, size_t into_bytes)
{
	size_t at = 10, end;

	at += (size_t)snprintf(into + at, into_bytes - at,
		"{'descr': '%s', 'fortran_order': False, 'shape': (", kvr_npy_descr(npy->type));
	for (uint32_t i = 0; i < npy->dim_count; i++)
		at += (size_t)snprintf(
			into + at, into_bytes - at, "%s%" PRIu64, i ? ", " : "", npy->shape[i]);
	at += (size_t)snprintf(
		into + at, into_bytes - at, "%s), }", npy->dim_count == 1 ? "," : "");
	end = (at + 1 + DATA_ALIGN - 1) / DATA_ALIGN * DATA_ALIGN;
	KVR_ASSERT(end <= into_bytes);
	memset(into + at, ' ', end - at);
	into[end - 1] = '\n';
	memcpy(into, MAGIC "\x01", MAGIC_BYTES + 2); /* the final NUL is the minor version */
	into[8] = (char)((end - 10) & 0xff);
	into[9] = (char)((end - 10) >> 8);
	return end;
}

/* Makes the temporary file in its full size. Returns its fd or -errno. */
static int make_file(struct kvr_npy *npy, const char *path, uint64_t bytes)
{
	mode_t mask = umask(0);
	int error = 0, fd;

	umask(mask);
	npy->path = strdup(path);
	if (!npy->path || asprintf(&npy->temporary, "%s.XXXXXX", path) < 0) {
		npy->temporary = NULL;
		return -ENOMEM;
	}
	fd = mkostemp(npy->temporary, O_CLOEXEC);
	if (fd < 0) {
		error = errno;
		free(npy->temporary);
		npy->temporary = NULL; /* N2 */
		return -error;
	}
	if (bytes > INT64_MAX || fchmod(fd, 0666 & ~mask))
		error = bytes > INT64_MAX ? EFBIG : errno;
	else
		error = posix_fallocate(fd, 0, (off_t)bytes);
	if (!error)
		return fd;
	close(fd);
	return -error;
}

int kvr_npy_create(const char *path, enum kvr_npy_type type, const uint64_t *shape,
	uint32_t dim_count, struct kvr_npy *ret_npy, struct kvr_npy_error *ret_error)
{
	struct kvr_npy npy = {.type = type, .dim_count = dim_count};
	char header[512];
	size_t header_bytes;
	uint64_t bytes = 0;
	void *map = MAP_FAILED;
	int error, fd;

	KVR_ASSERT(dim_count >= 1);
	KVR_ASSERT(dim_count <= KVR_NPY_DIMS_MAX);
	memcpy(npy.shape, shape, dim_count * sizeof(*shape));
	KVR_ASSERT(types[type - 1].type == type);
	npy.element_bytes = types[type - 1].bytes;
	error = count_bytes(path, &npy, &bytes, ret_error);
	if (error)
		return error;
	header_bytes = write_header(&npy, header, sizeof(header));
	if (__builtin_add_overflow(bytes, header_bytes, &bytes))
		return refuse(ret_error, EOVERFLOW, "", "%s: too large", path);
	fd = make_file(&npy, path, bytes);
	error = fd < 0 ? fd : 0;
	if (!error) {
		map = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		error = map == MAP_FAILED ? -errno : 0;
		close(fd);
	}
	if (error) {
		kvr_npy_close(&npy);
		return refuse(ret_error, -error, "write where there is room, and leave to",
			"%s: cannot write %" PRIu64 " bytes: %s", path, bytes, strerror(-error));
	}
	npy.file = (struct kvr_span){map, (size_t)bytes};
	npy.data = kvr_span_part(npy.file, header_bytes, bytes - header_bytes);
	memcpy(npy.file.data, header, header_bytes);
	*ret_npy = npy;
	return 0;
}

int kvr_npy_commit(struct kvr_npy *npy, struct kvr_npy_error *ret_error)
{
	KVR_ASSERT(npy->temporary != NULL); /* N2 */
	if (rename(npy->temporary, npy->path))
		return refuse(ret_error, errno, "write to a folder that takes files", "%s: %s",
			npy->path, strerror(errno));
	free(npy->temporary);
	npy->temporary = NULL; /* N2 */
	kvr_npy_close(npy);
	return 0;
}

void kvr_npy_close(struct kvr_npy *npy)
{
	if (npy->file.data)
		munmap(npy->file.data, npy->file.bytes);
	if (npy->temporary)
		unlink(npy->temporary);
	free(npy->temporary);
	free(npy->path);
	*npy = (struct kvr_npy){0};
}

const char *kvr_npy_descr(enum kvr_npy_type type)
{
	KVR_ASSERT(types[type - 1].type == type);
	return types[type - 1].descr;
}
