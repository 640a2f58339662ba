#!/usr/bin/env python3
"""Writes the weights of a GGUF as f32: exactly the numbers that its blocks stand for, and everything else as it is.

usage: dequantised_gguf.py MODEL.gguf OUT.gguf
A tensor at a time: memory for the largest one. OUT takes four bytes for each weight.
needs: pip install gguf numpy
"""
import sys
import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter, dequantize

F32_FILE = 0                                                              # general.file_type: all tensors are f32
if len(sys.argv) != 3: sys.exit("usage: dequantised_gguf.py MODEL.gguf OUT.gguf")
r = GGUFReader(sys.argv[1])
w = GGUFWriter(sys.argv[2], r.fields["general.architecture"].contents())
for name, f in r.fields.items():
    if name.startswith("GGUF.") or name == "general.architecture": continue
    value = F32_FILE if name == "general.file_type" else f.contents()
    w.add_key_value(name, value, f.types[0], f.types[-1] if f.types[0] == GGUFValueType.ARRAY else None)
for t in r.tensors:
    # A reader's shape has the row's length first, a writer's has it last.
    shape = [int(n) for n in reversed(t.shape)]
    w.add_tensor_info(t.name, shape, np.dtype(np.float32), 4 * t.n_elements)
w.write_header_to_file(); w.write_kv_data_to_file(); w.write_ti_data_to_file()
for t in r.tensors: w.write_tensor_data(np.ascontiguousarray(dequantize(t.data, t.tensor_type), dtype=np.float32))
w.close()
