#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""reference.py: what `tinylm selftest` compares with, computed independently of the C code.

    python3 reference.py MODEL_FOLDER TOKENIZER_MODEL TEXT > selftest_data.h
                                                             (needs numpy and sentencepiece)

Reads weights.tlm by the table in model.h, runs the transformer in numpy on the first tokens of TEXT
(keys and values rounded to bf16, as the engine keeps them), and tokenises the cases below with the
sentencepiece library from its own model file (TOKENIZER_MODEL, not the .vocab).
"""

import pathlib
import struct
import sys

import numpy as np
import sentencepiece

TOKENS = 300        # more than two batches of 128
POSITIONS = range(19, TOKENS, 40)
IDS_PER_POSITION = 8
CASES = [
    "Hello world",
    "  two  spaces\n\n\ttab and a line end\r\n",
    "h\u00e9llo \u2581 na\u00efve \u65e5\u672c \U0001f511",
    "for (uint32_t i = 0; i < count; i++)\n\tsum += x[i] * 0x1f;",
    "<s> is text here, and so are </s>, <unk> and <0x41>",
    " " * 37 + "x" * 19 + "=" * 33 + "1234567890",
    "a",
    " ",
    "\u00e9",
]


def read_model(path):
    data = path.read_bytes()
    names = ("dim", "ffn", "layers", "heads", "kv_heads", "head_dim", "vocab", "context")
    shape = dict(zip(names, struct.unpack("<8I", data[16:48])))
    shape["theta"], shape["eps"] = struct.unpack("<2f", data[48:56])
    at = 128

    def take(dtype, *dims):
        nonlocal at
        count = int(np.prod(dims))
        array = np.frombuffer(data, dtype, count, at).reshape(dims)
        at += array.nbytes
        return array

    def norm():
        return take("<f4", shape["dim"])

    def matrix(rows, columns):
        scale = take("<f4", rows, 1)
        return scale * take("i1", rows, columns)

    dim, ffn = shape["dim"], shape["ffn"]
    query, kv = shape["heads"] * shape["head_dim"], shape["kv_heads"] * shape["head_dim"]
    embedding = matrix(shape["vocab"], dim)
    layers = [dict(norm1=norm(), wq=matrix(query, dim), wk=matrix(kv, dim), wv=matrix(kv, dim),
                   wo=matrix(dim, query), norm2=norm(), w1=matrix(ffn, dim), w2=matrix(dim, ffn),
                   w3=matrix(ffn, dim)) for _ in range(shape["layers"])]
    last = norm()
    assert at == len(data)
    return shape, embedding, layers, last


def to_bf16(x):
    bits = np.ascontiguousarray(x, "f4").view("u4").astype("u8")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype("u4").view("f4")


def logits_of(model, tokens):
    shape, embedding, layers, last = model
    count, head_dim = len(tokens), shape["head_dim"]
    group = shape["heads"] // shape["kv_heads"]
    angles = np.outer(np.arange(count), shape["theta"] ** (-np.arange(0, head_dim, 2) / head_dim))
    turn = np.exp(1j * angles)[:, None, :]

    def rms_norm(x, gain):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + shape["eps"]) * gain

    def rope(x):  # a pair of neighbours is a complex number
        turned = (x[..., 0::2] + 1j * x[..., 1::2]) * turn
        return np.stack([turned.real, turned.imag], -1).reshape(x.shape).astype("f4")

    future = np.triu(np.full((count, count), -np.inf), 1)
    x = embedding[tokens].astype("f4")
    for layer in layers:
        h = rms_norm(x, layer["norm1"])
        q = rope((h @ layer["wq"].T).reshape(count, -1, head_dim))
        k = to_bf16(rope((h @ layer["wk"].T).reshape(count, -1, head_dim)))
        v = to_bf16((h @ layer["wv"].T).reshape(count, -1, head_dim))
        out = np.empty_like(q)
        for head in range(shape["heads"]):
            scores = q[:, head] @ k[:, head // group].T / np.sqrt(head_dim) + future
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, head] = shares / shares.sum(-1, keepdims=True) @ v[:, head // group]
        x = x + out.reshape(count, -1) @ layer["wo"].T
        h = rms_norm(x, layer["norm2"])
        gate = h @ layer["w1"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ layer["w3"].T)) @ layer["w2"].T
    return rms_norm(x, last) @ embedding.T


def c_string(text):
    return '"' + "".join(f"\\{byte:03o}" if byte < 32 or byte > 126 or chr(byte) in '"\\?'
                         else chr(byte) for byte in text.encode()) + '"'


def main(folder, tokenizer_path, text_path):
    model = read_model(pathlib.Path(folder) / "weights.tlm")
    pieces = sentencepiece.SentencePieceProcessor(model_file=tokenizer_path)
    text = pathlib.Path(text_path).read_text(encoding="utf-8")
    tokens = ([1] + pieces.encode(text))[:TOKENS]
    logits = logits_of(model, np.array(tokens))
    top = logits.max(-1)
    log_sum = top + np.log(np.exp(logits - top[:, None]).sum(-1))
    nll = (log_sum[:-1] - logits[np.arange(TOKENS - 1), tokens[1:]]).mean()

    print("/* SPDX-License-Identifier: Apache-2.0 */")
    print("/* selftest_data.h: what selftest.c compares with. Written by reference.py. */")
    print("#ifndef TINYLM_SELFTEST_DATA_H\n#define TINYLM_SELFTEST_DATA_H\n\n#include <stdint.h>\n")
    print("/* clang-format off */")
    print("struct tinylm_case { const char *text; uint32_t bytes, count; uint32_t ids[128]; };")
    print("static const struct tinylm_case tokenizer_cases[] = {")
    for case in CASES:
        ids = pieces.encode(case)
        assert pieces.decode(ids) == case.replace("\u2581", " ") and len(ids) <= 128
        print(f"{{{c_string(case)}, {len(case.encode())}, {len(ids)}, {{{', '.join(map(str, ids))}}}}},")
    print("};\n")
    print(f"/* <s> and the first tokens of the text. */\nstatic const uint32_t reference_tokens[{TOKENS}] = {{")
    for at in range(0, TOKENS, 18):
        print(", ".join(map(str, tokens[at:at + 18])) + ",")
    print("};\n")
    print(f"/* Mean negative log-likelihood of tokens 1 .. {TOKENS - 1}. */")
    print(f"static const double reference_nll = {nll:.6f};\n")
    print("struct tinylm_logit { uint32_t position, id; float value; };")
    print("static const struct tinylm_logit reference_logits[] = {")
    for position in POSITIONS:
        best = int(logits[position].argmax())
        ids = [best] + [(best + 521 * i) % len(logits[position]) for i in range(1, IDS_PER_POSITION)]
        print(" ".join(f"{{{position}, {i}, {logits[position][i]:.5f}f}}," for i in ids))
    print("};\n/* clang-format on */\n\n#endif")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
