/* SPDX-License-Identifier: Apache-2.0 */
/* npy.c: any bytes as a .npy file.
 *
 * Goal: the reader of the command line leaves no file and accepts no array that is not there.
 * Method: libFuzzer; what is accepted must describe the end of the file exactly, and every byte of
 * it is read, so that the sanitizer sees a wrong length. */
#include "client/cli_npy.c" /* NOLINT(bugprone-suspicious-include): no library holds it */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	struct kvr_npy_error why = {{0}, NULL};
	struct kvr_npy npy = {0};
	volatile uint8_t sum = 0;
	uint64_t expected = 1;

	if (kvr_npy_parse(
		    (struct kvr_span){(uint8_t *)(uintptr_t)data, bytes}, "file", &npy, &why)) {
		KVR_ASSERT(why.subject[0] != 0);
		KVR_ASSERT(why.remedy != NULL);
		return 0;
	}
	for (uint32_t i = 0; i < npy.dim_count; i++)
		KVR_ASSERT(!__builtin_mul_overflow(expected, npy.shape[i], &expected));
	KVR_ASSERT(!__builtin_mul_overflow(expected, npy.element_bytes, &expected));
	KVR_ASSERT(expected == npy.data.bytes);
	KVR_ASSERT(npy.data.data + npy.data.bytes == data + bytes);
	for (size_t i = 0; i < npy.data.bytes; i++)
		sum = (uint8_t)(sum ^ npy.data.data[i]);
	return 0;
}
