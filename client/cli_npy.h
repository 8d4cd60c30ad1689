/* SPDX-License-Identifier: Apache-2.0 */
/* cli_npy.h: arrays in .npy files, read and written through a mapping.
 *
 * Format 1.0 and 2.0 (numpy.lib.format); C order and little-endian only. A file:
 *
 *   OFFSET SIZE MEANING
 *        0    6 magic "\x93NUMPY"
 *        6    1 major version, 1 or 2
 *        7    1 minor version, 0
 *        8    2 bytes of the header h, little-endian (4 bytes in version 2)
 *       10    h header: a Python dict with descr, fortran_order and shape, then spaces, a newline
 *     10+h    - the elements, dense; nothing behind them
 *
 * It converts nothing and knows nothing of keys and values.
 *
 * Nothing in a file is trusted: lengths, types and the product of the shape are checked against the
 * file's size before the mapping is touched. A file that another process makes shorter meanwhile
 * ends the program with SIGBUS. */
#ifndef KVR_CLIENT_CLI_NPY_H
#define KVR_CLIENT_CLI_NPY_H

#include <stdint.h>

#include "base/span.h"

#define KVR_NPY_DIMS_MAX     8u
#define KVR_NPY_HEADER_BYTES 65535u /* of a header, at most; real ones have about 100 */

enum kvr_npy_type {
	KVR_NPY_F2 = 1, /* IEEE half */
	KVR_NPY_F4,
	KVR_NPY_I4,
	KVR_NPY_U4,
	KVR_NPY_I8,
	KVR_NPY_U2,
	KVR_NPY_V2, /* two opaque bytes: how bfloat16 extensions save their arrays */
};

struct kvr_npy {
	enum kvr_npy_type type;
	uint32_t dim_count; /* 1 to KVR_NPY_DIMS_MAX */
	uint64_t shape[KVR_NPY_DIMS_MAX];
	uint64_t element_count; /* 1 or more */
	uint32_t element_bytes;
	struct kvr_span data; /* the elements, of any alignment */
	struct kvr_span file; /* the mapping; data NULL: none */
	char *path;           /* of a file being written, with its temporary name; else NULL */
	char *temporary;
};

struct kvr_npy_error {
	char subject[512];
	const char *remedy;
};

/* Reads a file that lies in memory; `ret_npy` borrows from it. Writes `ret_error` on failure.
 * Errors: -EBADMSG (not a .npy file, or damaged), -ENOTSUP (a kind that is not served), -EOVERFLOW. */
int kvr_npy_parse(struct kvr_span file, const char *path, struct kvr_npy *ret_npy,
	struct kvr_npy_error *ret_error);

/* Maps a file for reading. Errors: those of open and mmap, and those above. */
int kvr_npy_open(const char *path, struct kvr_npy *ret_npy, struct kvr_npy_error *ret_error);

/* Makes a file of zeros next to `path` and maps it for writing. Its space is allocated now, so that
 * a full disk is an error here. Nothing is seen at `path` before kvr_npy_commit. */
int kvr_npy_create(const char *path, enum kvr_npy_type type, const uint64_t *shape,
	uint32_t dim_count, struct kvr_npy *ret_npy, struct kvr_npy_error *ret_error);

/* Moves what was written to its path, replacing what is there, and closes it. */
int kvr_npy_commit(struct kvr_npy *npy, struct kvr_npy_error *ret_error);

/* Unmaps; throws away a file that was not committed. Takes zeroed memory and closed arrays. */
void kvr_npy_close(struct kvr_npy *npy);

/* The element's name in numpy: "<f2". */
const char *kvr_npy_descr(enum kvr_npy_type type);

#endif
