#!/usr/bin/env python3
"""Writes a GGUF with random weights in the exact shape of a published model, for speed and memory measurements:
the time of a forward pass depends on shapes and formats, not on what the weights say.

usage: random_gguf.py SHAPE OUT.gguf [--format f32|bf16|q8_0|q4_k_m] [--layers N]     SHAPE: qwen2-0.5b qwen2-1.5b qwen2-7b llama-8b qwen3-8b v2-lite
The vocabulary is one of bytes, filled up to the shape's size: speed is measured on token ids. bf16 is to be quantised by any tool;
q8_0 and q4_k_m are written as random blocks at once (scales chosen so that weights have the usual spread; q4_k_m mixes Q4_K, Q6_K and, where a row is
not a multiple of 256, Q8_0, as llama.cpp does): 1.0 GB for 1.5B, 4.6 GB for 7B, about 10 GB for v2-lite, which needs all its 27 layers (llama.cpp knows it by that
count). Streams: little memory. Put the file into /dev/shm where disks are slow.
needs: pip install gguf numpy
"""
import argparse, numpy as np
from gguf import ExpertGatingFuncType, GGUFWriter, GGMLQuantizationType, RopeScalingType

SHAPES = {  # arch, layers, hidden, heads, kv heads, head dim, ffn, vocab, rope theta
    "qwen2-0.5b": ("qwen2", 24, 896, 14, 2, 64, 4864, 151936, 1000000.0),     # Qwen2.5-0.5B
    "qwen2-1.5b": ("qwen2", 28, 1536, 12, 2, 128, 8960, 151936, 10000.0),     # DeepSeek-R1-Distill-Qwen-1.5B
    "qwen2-7b":   ("qwen2", 28, 3584, 28, 4, 128, 18944, 152064, 10000.0),    # DeepSeek-R1-Distill-Qwen-7B
    "llama-8b":   ("llama", 32, 4096, 32, 8, 128, 14336, 128256, 500000.0),   # DeepSeek-R1-Distill-Llama-8B
    "qwen3-8b":   ("qwen3", 36, 4096, 32, 8, 128, 12288, 151936, 1000000.0),  # DeepSeek-R1-0528-Qwen3-8B
}
V2_LITE = "v2-lite"  # DeepSeek-V2-Lite: 27 layers, MLA (latent 512 + rope 64), 64 experts of 1408, 6 used, 2 shared, first layer dense
ap = argparse.ArgumentParser(); ap.add_argument("shape", choices=[*SHAPES, V2_LITE]); ap.add_argument("out"); ap.add_argument("--layers", type=int); ap.add_argument("--format", choices=["f32", "bf16", "q8_0", "q4_k_m"], default="bf16")
a = ap.parse_args()
moe = a.shape == V2_LITE
arch, L, H, nq, nkv, hd, ff, V, theta = ("deepseek2", 27, 2048, 16, 1, 576, 10944, 102400, 10000.0) if moe else SHAPES[a.shape]
L = a.layers or L
w = GGUFWriter(a.out, arch)
w.add_block_count(L); w.add_context_length(131072); w.add_embedding_length(H); w.add_feed_forward_length(ff); w.add_head_count(nq)
w.add_head_count_kv(nkv); w.add_key_length(hd); w.add_value_length(512 if moe else hd); w.add_rope_freq_base(theta); w.add_layer_norm_rms_eps(1e-6); w.add_vocab_size(V)
w.add_rope_dimension_count(64 if moe else hd)
if moe:
    w.add_kv_lora_rank(512); w.add_key_length_mla(192); w.add_value_length_mla(128); w.add_leading_dense_block_count(1)
    w.add_expert_count(64); w.add_expert_used_count(6); w.add_expert_shared_count(2); w.add_expert_feed_forward_length(1408)
    w.add_expert_weights_scale(1.0); w.add_expert_weights_norm(False); w.add_expert_gating_func(ExpertGatingFuncType.SOFTMAX)
    w.add_rope_scaling_type(RopeScalingType.YARN); w.add_rope_scaling_factor(40.0); w.add_rope_scaling_orig_ctx_len(4096)
    w.add_rope_scaling_yarn_log_mul(0.0707)
printable = [*range(33, 127), *range(161, 173), *range(174, 256)]              # GPT-2's letters for bytes
letters = [chr(c) for c in printable] + [chr(256 + i) for i in range(256 - len(printable))]
tokens = [*letters, chr(288) + "t", "<|endoftext|>"]
w.add_tokenizer_model("gpt2"); w.add_tokenizer_pre("deepseek-llm" if moe else "llama-bpe" if arch == "llama" else "qwen2")
w.add_token_list(tokens + [f"[PAD{i}]" for i in range(len(tokens), V)])
w.add_token_types([1] * (len(tokens) - 1) + [3] + [5] * (V - len(tokens)))
w.add_token_merges([chr(288) + " t"]); w.add_bos_token_id(len(tokens) - 1); w.add_eos_token_id(len(tokens) - 1); w.add_add_bos_token(False)
rng = np.random.default_rng(7)
base = rng.standard_normal(1 << 22, dtype=np.float32)
noise = rng.integers(0, 256, 1 << 24, dtype=np.uint8)
T = GGMLQuantizationType
SIZES = {T.BF16: (1, 2), T.Q8_0: (32, 34), T.Q4_K: (256, 144), T.Q6_K: (256, 210), T.F32: (1, 4)}  # weights and bytes of a block
tensors = []                                                              # name, shape, type, maker of the bytes
def half(x): return np.float16(x).view(np.uint16)
def chunks(n, std, kind):
    """The bytes of n weights, in pieces of whole blocks."""
    per, size = SIZES[kind]; left = n // per
    while left:
        k = min(left, 1 << 17); off = int(rng.integers(0, 1 << 20)); left -= k
        if kind == T.F32: yield (np.resize(base[off:], k) * np.float32(std)).view(np.uint8); continue
        if kind == T.BF16: yield (np.resize(base[off:], k) * np.float32(std)).view(np.uint32).__rshift__(16).astype(np.uint16).view(np.uint8); continue
        b = np.resize(noise[off:], k * size).reshape(k, size).copy()
        if kind == T.Q8_0: b[:, :2].view(np.uint16)[:] = half(std / 73)
        elif kind == T.Q4_K: b[:, :2].view(np.uint16)[:] = half(std / 350); b[:, 2:4].view(np.uint16)[:] = half(7.5 * std / 350)
        else: b[:, 192:208] = (b[:, 192:208] >> 1); b[:, 208:].view(np.uint16)[:] = half(std / 1300)
        yield b.reshape(-1)
def kind_of(name, row, l):
    if a.format in ("f32", "bf16"): return T[a.format.upper()]
    if a.format == "q8_0" or row % 256: return T.Q8_0
    more = l is not None and (l < L // 8 or l >= 7 * L // 8 or (l - L // 8) % 3 == 2)    # as llama.cpp's use_more_bits
    return T.Q6_K if name == "output.weight" or (more and ("attn_v." in name or "ffn_down" in name)) else T.Q4_K
def lin(name, *shape):
    l = int(name.split(".")[1]) if name.startswith("blk.") else None; kind = kind_of(name, shape[-1], l); n = int(np.prod(shape)); per, size = SIZES[kind]
    tensors.append((name, shape, kind, n // per * size, lambda: chunks(n, 1.0 / shape[-1] ** 0.5, kind)))
def f32(name, x): x = np.ascontiguousarray(x, dtype=np.float32); tensors.append((name, x.shape, T.F32, x.nbytes, lambda: [x.reshape(-1).view(np.uint8)]))
def vec(name, n, mean=1.0, std=0.05): f32(name, mean + std * base[:n])
lin("token_embd.weight", V, H); vec("output_norm.weight", H); lin("output.weight", V, H)
for l in range(L):
    p = f"blk.{l}."
    vec(p + "attn_norm.weight", H); vec(p + "ffn_norm.weight", H)
    if moe:
        lin(p + "attn_q.weight", nq * 192, H); lin(p + "attn_kv_a_mqa.weight", 576, H); vec(p + "attn_kv_a_norm.weight", 512)
        lin(p + "attn_k_b.weight", nq, 512, 128); lin(p + "attn_v_b.weight", nq, 128, 512); lin(p + "attn_output.weight", H, nq * 128)
        if l == 0: lin(p + "ffn_gate.weight", ff, H); lin(p + "ffn_up.weight", ff, H); lin(p + "ffn_down.weight", H, ff); continue
        f32(p + "ffn_gate_inp.weight", (base[: 64 * H] / H ** 0.5).reshape(64, H))
        lin(p + "ffn_gate_exps.weight", 64, 1408, H); lin(p + "ffn_up_exps.weight", 64, 1408, H); lin(p + "ffn_down_exps.weight", 64, H, 1408)
        lin(p + "ffn_gate_shexp.weight", 2816, H); lin(p + "ffn_up_shexp.weight", 2816, H); lin(p + "ffn_down_shexp.weight", H, 2816)
        continue
    for n, o in (("q", nq * hd), ("k", nkv * hd), ("v", nkv * hd)):
        lin(p + f"attn_{n}.weight", o, H)
        if arch == "qwen2": vec(p + f"attn_{n}.bias", o, 0.0, 0.1)
    if arch == "qwen3": vec(p + "attn_q_norm.weight", hd); vec(p + "attn_k_norm.weight", hd)
    lin(p + "attn_output.weight", H, nq * hd)
    lin(p + "ffn_gate.weight", ff, H); lin(p + "ffn_up.weight", ff, H); lin(p + "ffn_down.weight", H, ff)
for name, shape, kind, nbytes, _ in tensors:
    per, size = SIZES[kind]; w.add_tensor_info(name, (*shape[:-1], shape[-1] // per * size) if kind != T.F32 else shape, np.dtype(np.float32 if kind == T.F32 else np.uint8), nbytes, None if kind == T.F32 else kind)
w.write_header_to_file(); w.write_kv_data_to_file(); w.write_ti_data_to_file()
out = w.fout[0]
for name, _, _, nbytes, make in tensors:
    w.write_padding(out, out.tell())
    for piece in make(): out.write(piece.tobytes())
    w.write_padding(out, out.tell())
w.close()
print("wrote", a.out)
