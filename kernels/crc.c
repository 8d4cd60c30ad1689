/* SPDX-License-Identifier: Apache-2.0 */
/* crc.c: CRC-32C by ISA-L; the only file that knows it.
 *
 * ISA-L neither sets the register at the start nor inverts it at the end: both are done here. It
 * takes lengths as int, so long runs go in parts. It chooses its code for this processor at the first
 * call, by storing one pointer: threads that race there store the same. */

#include "kernels/crc.h"

#include <isa-l/crc.h>

#define PART_BYTES ((size_t)1 << 30)

uint32_t kvr_crc32c(uint32_t crc, const void *data, size_t bytes)
{
	/* The library does not write; its type says less than it keeps. */
	unsigned char *from = (unsigned char *)(uintptr_t)data;

	crc = ~crc;
	for (; bytes > PART_BYTES; bytes -= PART_BYTES, from += PART_BYTES)
		crc = crc32_iscsi(from, (int)PART_BYTES, crc);
	if (bytes > 0)
		crc = crc32_iscsi(from, (int)bytes, crc);
	return ~crc;
}
