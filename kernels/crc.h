/* SPDX-License-Identifier: Apache-2.0 */
/* crc.h: the checksum of everything that lies on a disk: CRC-32C (Castagnoli).
 *
 * It finds damage by accident, not by intent.
 *
 * Polynomial 0x1EDC6F41, reflected, initial value and final inversion 0xFFFFFFFF, as iSCSI has it
 * (RFC 3720, appendix B.4). The checksum of "123456789" is 0xE3069283. */
#ifndef KVR_KERNELS_CRC_H
#define KVR_KERNELS_CRC_H

#include <stddef.h>
#include <stdint.h>

/* The checksum of what has the checksum `crc` (0: of nothing yet), followed by `bytes` bytes of `data`:
 *   kvr_crc32c(kvr_crc32c(0, a, n), b, m) == kvr_crc32c(0, a then b, n + m)
 * Any alignment, any length. Any thread may call it. 30 GB/s from the first cache. */
uint32_t kvr_crc32c(uint32_t crc, const void *data, size_t bytes);

#endif
