/* SPDX-License-Identifier: Apache-2.0 */
/* stream.h: what the launchers of kernels/cuda/ have in common. It needs no CUDA to be included.
 *
 * A launcher takes a struct and a stream, checks what the struct says, starts one kernel, and returns: 0;
 * -EINVAL where a number is outside the range that its comment states (nothing was started); or -EIO where
 * CUDA did not take the launch. It never waits, allocates, prints or ends the process. What the kernel itself
 * meets is told by the stream, later.
 *
 * All pointers are to memory that the device reads and writes: its own, or host memory that is pinned and mapped.
 * They, and the structs that they lead to, are borrowed until the stream has passed the launch. The struct
 * itself is copied.
 *
 * A host without a GPU has the same launchers in the test build (kernels/cuda/emulate.h): host memory, and the
 * stream is not looked at. */
#ifndef KVR_KERNELS_CUDA_STREAM_H
#define KVR_KERNELS_CUDA_STREAM_H

struct CUstream_st; /* CUDA's own: a cudaStream_t is a pointer to it; NULL: the default stream */

#ifdef __cplusplus
#define KVR_CUDA_API extern "C" __attribute__((visibility("default")))
#else
#define KVR_CUDA_API extern
#endif

#endif
