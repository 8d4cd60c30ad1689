/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_util.h: launches of the CUDA sources on the CPU (kernels/cuda/emulate.h), each in all orders of blocks
 * and threads, held against each other. */
#ifndef KVR_TESTS_KERNELS_CUDA_UTIL_H
#define KVR_TESTS_KERNELS_CUDA_UTIL_H

#include "kernels/cuda/emulate.h"
#include "tests/kernels/oracle_util.h"

#define CUDA_UNTOUCHED 0x5c /* bytes of an output before a launch */

/* Runs a launch in every order, from outputs of CUDA_UNTOUCHED. Fails the test unless it returns 0 without a
 * fault, leaves all canaries alone and writes the same bits in every order. They stay in the outputs. */
void cuda_run(int (*launch)(const void *owner), const void *owner,
	const struct oracle_guard *const *outputs, uint32_t output_count);

#endif
