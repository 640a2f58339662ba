#!/usr/bin/env python3
"""Reference values for SmolLM2-135M-Instruct (Q4_1): token ids of odd texts, and the log-probability of each token of
four windows of 256 tokens, in float64 over the dequantised weights.

usage: make_smollm2_reference.py MODEL.gguf TEXT OUT.json     needs: numpy, gguf, tokenizers (of the Python registry)
"""
import json, sys
import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import Tokenizer, AddedToken, models, pre_tokenizers, decoders

path, text_path, out_path = sys.argv[1:4]
reader = GGUFReader(path)
field = lambda key: reader.fields[key].contents()

# The published tokenizer: single digits, then GPT-2's words over bytes.
tokens, kinds = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
merges = [tuple(m.split(" ")) for m in field("tokenizer.ggml.merges")]
tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
tokenizer.decoder = decoders.ByteLevel()
tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t, k in zip(tokens, kinds) if k == 3])
texts = ["Hello world", " Hello  World\t!", "I'LL go, it's 12345 km.", "3.14159 and 1,000,000", "\n\n\n", " \n \n x", "a\r\nb\r\n\r\nc",
         "中文，混排 English 123。", "naïve café — 🦀🦀", "<|im_start|>user\nhi<|im_end|>\n", "def f(x):\n    return x*x  # 2 spaces",
         "x" * 50, "don't can't we'll they've I'm he'd", "٣٤٥ ½ ² Ⅷ", "e\u0301te\u0301 \u200b\u00a0nbsp", "https://a.b/c?d=1&e=2#f", "{\"k\": [1, 2.5e-3, null]}"]
vectors = [dict(text=t, ids=tokenizer.encode(t, add_special_tokens=False).ids) for t in texts]

W = {t.name: dequantize(t.data, t.tensor_type).astype(np.float64) for t in reader.tensors}
layers, heads, kv_heads = (field(f"llama.{k}") for k in ("block_count", "attention.head_count", "attention.head_count_kv"))
hidden, eps, base = (field(f"llama.{k}") for k in ("embedding_length", "attention.layer_norm_rms_epsilon", "rope.freq_base"))
D = hidden // heads
inv_freq = (1.0 / base ** (np.arange(0, D, 2) / D)).astype(np.float32).astype(np.float64)

def norm(x, w): return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w

def rope(x):  # [T, heads, D]; rows of q and k are permuted in GGUF so that pairs are neighbours
    angle = np.arange(x.shape[0])[:, None] * inv_freq
    c, s = np.cos(angle)[:, None], np.sin(angle)[:, None]
    a, b = x[..., 0::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., 0::2], out[..., 1::2] = a * c - b * s, a * s + b * c
    return out

def logits(ids):
    x = W["token_embd.weight"][ids]
    T = len(ids)
    mask = np.triu(np.full((T, T), -np.inf), 1)
    for l in range(layers):
        p = lambda n: W[f"blk.{l}.{n}.weight"]
        h = norm(x, p("attn_norm"))
        q = rope((h @ p("attn_q").T).reshape(T, heads, D))
        k = rope((h @ p("attn_k").T).reshape(T, kv_heads, D)).repeat(heads // kv_heads, 1)
        v = (h @ p("attn_v").T).reshape(T, kv_heads, D).repeat(heads // kv_heads, 1)
        s = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(D) + mask
        s = np.exp(s - s.max(-1, keepdims=True)); s /= s.sum(-1, keepdims=True)
        x = x + np.einsum("hij,jhd->ihd", s, v).reshape(T, hidden) @ p("attn_output").T
        h = norm(x, p("ffn_norm"))
        g = h @ p("ffn_gate").T
        x = x + (g / (1 + np.exp(-g)) * (h @ p("ffn_up").T)) @ p("ffn_down").T
    return norm(x, W["output_norm.weight"]) @ W.get("output.weight", W["token_embd.weight"]).T

ids = tokenizer.encode(open(text_path, encoding="utf-8").read(), add_special_tokens=False).ids[:1024]
windows = []
for start in range(0, 1024, 256):
    w = ids[start:start + 256]
    z = logits(w)
    z = z - z.max(-1, keepdims=True)
    lp = z - np.log(np.exp(z).sum(-1, keepdims=True))
    windows.append(dict(ids=w, logprobs=[round(float(lp[i, w[i + 1]]), 7) for i in range(255)]))
ppl = float(np.exp(-np.mean([x for w in windows for x in w["logprobs"]])))
json.dump(dict(source="numpy float64 over dequantised Q4_1 and Q8_0; logprobs[i] is that of ids[i + 1]", perplexity=round(ppl, 6),
               windows=windows, tokenizer=vectors), open(out_path, "w"), ensure_ascii=False)
print("perplexity", ppl, "second halves", float(np.exp(-np.mean([x for w in windows for x in w["logprobs"][128:]]))))
