#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""convert.py: float32 checkpoint -> the compact weights.tlm that the engine loads.

    python3 convert.py CHECKPOINT VOCAB OUTPUT_FOLDER        (needs numpy)

CHECKPOINT: 7 little-endian int32 (dim, ffn, layers, heads, kv heads, vocabulary, context), then
float32 tensors: embedding, norm1, wq, wk, wv, wo, norm2, w1, w2, w3, final norm; what follows (RoPE
tables) is ignored. VOCAB: a SentencePiece .vocab file, "piece TAB score" a line.

Every matrix row becomes int8 with one float32 scale, the largest magnitude / 127; norms stay
float32. The byte table of the output stands in model.h; this script and model.c follow it.
"""

import hashlib
import pathlib
import struct
import sys
import zlib

import numpy as np

HEADER_BYTES = 128
ROPE_THETA = 10000.0
NORM_EPS = 1e-5


def rows_to_int8(matrix):
    """[rows][columns] f32 -> bytes of f32 scale[rows], then int8 [rows][columns]."""
    scale = np.abs(matrix).max(axis=1) / 127
    scale[scale == 0] = 1
    rows = np.clip(np.rint(matrix / scale[:, None]), -127, 127).astype("i1")
    return scale.astype("<f4").tobytes() + rows.tobytes()


def main(checkpoint_path, vocab_path, folder):
    checkpoint = pathlib.Path(checkpoint_path).read_bytes()
    vocab_bytes = pathlib.Path(vocab_path).read_bytes()
    dim, ffn, layers, heads, kv_heads, vocab, context = struct.unpack("<7i", checkpoint[:28])
    head_dim = dim // heads
    numbers = np.frombuffer(checkpoint, "<f4", offset=28)
    shapes = {
        "embedding": (1, vocab, dim), "norm1": (layers, dim), "wq": (layers, dim, dim),
        "wk": (layers, kv_heads * head_dim, dim), "wv": (layers, kv_heads * head_dim, dim),
        "wo": (layers, dim, dim), "norm2": (layers, dim), "w1": (layers, ffn, dim),
        "w2": (layers, dim, ffn), "w3": (layers, ffn, dim), "norm": (1, dim),
    }
    tensors, at = {}, 0
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        if at + count > len(numbers):
            sys.exit(f"{checkpoint_path}: too short for {name}")
        tensors[name] = numbers[at:at + count].reshape(shape)
        at += count

    payload = rows_to_int8(tensors["embedding"][0])
    for layer in range(layers):
        for name in ("norm1", "wq", "wk", "wv", "wo", "norm2", "w1", "w2", "w3"):
            tensor = tensors[name][layer]
            payload += tensor.tobytes() if tensor.ndim == 1 else rows_to_int8(tensor)
    payload += tensors["norm"][0].tobytes()

    shape = struct.pack("<8I2fQ", dim, ffn, layers, heads, kv_heads, head_dim, vocab, context,
                        ROPE_THETA, NORM_EPS, HEADER_BYTES + len(payload))
    digest = hashlib.sha256(shape + payload).digest()
    body = shape + digest + struct.pack("<2I", len(vocab_bytes), zlib.crc32(vocab_bytes))
    body = body.ljust(HEADER_BYTES - 16, b"\0") + payload
    header = b"tinylm\0\0" + struct.pack("<2I", 1, zlib.crc32(body))

    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.tlm").write_bytes(header + body)
    (folder / "tokenizer.vocab").write_bytes(vocab_bytes)
    print(f"sha256 of {checkpoint_path}: {hashlib.sha256(checkpoint).hexdigest()}")
    print(f"{folder}/weights.tlm: {len(header) + len(body)} bytes, digest {digest.hex()}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
