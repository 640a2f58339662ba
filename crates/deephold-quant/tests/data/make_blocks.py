"""Writes blocks.bin: random blocks of every format and what the `gguf` package (pip install gguf) decodes them to."""

import struct
import sys

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize

# Byte offsets of the f16 fields of a block; everything else may be any byte.
HALVES = {
    T.F16: [0], T.BF16: [], T.Q8_0: [0], T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q2_K: [80, 82],
    T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208], T.IQ4_NL: [0], T.IQ4_XS: [0],
}
rng = np.random.default_rng(2)
with open(sys.argv[1], "wb") as out:
    for kind, halves in HALVES.items():
        count = 4 if kind not in (T.F16, T.BF16) else 64
        blocks = rng.integers(0, 256, (count, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
        if kind is T.BF16:
            blocks = (rng.standard_normal(count).astype(np.float32).view(np.uint32) >> 16).astype("<u2").view(np.uint8).reshape(count, 2)
        for at in halves:
            scale = rng.standard_normal((count, 1)).astype("<f2")
            blocks[:, at : at + 2] = scale.view(np.uint8)
        # Extreme codes everywhere outside the scales.
        for value, row in ((0x00, 0), (0xFF, 1)) if count == 4 else ():
            keep = blocks[row].copy()
            blocks[row] = value
            for at in halves:
                blocks[row, at : at + 2] = keep[at : at + 2]
        values = dequantize(blocks, kind).astype("<f4")
        out.write(struct.pack("<II", int(kind), count) + blocks.tobytes() + values.tobytes())
