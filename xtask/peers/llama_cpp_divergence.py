#!/usr/bin/env python3
"""How far llama.cpp's next-token distributions with a GGUF are from its own with a reference GGUF of the same vocabulary.

usage: llama_cpp_divergence.py MODEL.gguf REFERENCE.gguf TEXT [-c 512] [-w WINDOWS] [-t THREADS]
Windows of -c tokens side by side, of each the second half scored, as llama.cpp's own perplexity tool does; the model with repacked weights and without.
needs: pip install llama-cpp-python numpy
prints one JSON line: {"peer","scored_tokens","reference_perplexity","repacked":{"kl_mean","kl_standard_error","perplexity"},"plain":{..}}; KL(reference || model) in nats
"""
import argparse, ctypes, json, os
import llama_cpp as lc
import numpy as np

ap = argparse.ArgumentParser()
ap.add_argument("model"); ap.add_argument("reference"); ap.add_argument("text")
ap.add_argument("-c", type=int, default=512); ap.add_argument("-w", type=int, default=32); ap.add_argument("-t", type=int, default=os.cpu_count())
a = ap.parse_args()
quiet = lc.llama_log_callback(lambda *_: None); lc.llama_log_set(quiet, None)
lc.llama_backend_init()

class Loaded:
    def __init__(self, path, repacked):
        mp = lc.llama_model_default_params(); mp.n_gpu_layers = 0; mp.use_extra_bufts = repacked
        self.model = lc.llama_model_load_from_file(path.encode(), mp); assert self.model, "llama.cpp cannot load " + path
        self.vocab = lc.llama_model_get_vocab(self.model); self.size = lc.llama_vocab_n_tokens(self.vocab)
        cp = lc.llama_context_default_params()
        cp.n_ctx = cp.n_batch = a.c; cp.n_ubatch = min(a.c, 512); cp.n_threads = cp.n_threads_batch = a.t; cp.n_seq_max = 1
        self.ctx = lc.llama_init_from_model(self.model, cp)
        self.batch = lc.llama_batch_init(a.c, 0, 1); self.kl = []; self.nll = []
    def tokens(self, text):
        room = (lc.llama_token * (len(text) + 8))()
        n = lc.llama_tokenize(self.vocab, text, len(text), room, len(room), True, True); assert n > 0, n
        return list(room[:n])
    def run(self, ids, scored):
        lc.llama_memory_clear(lc.llama_get_memory(self.ctx), True)
        b = self.batch; b.n_tokens = len(ids)
        for i, token in enumerate(ids):
            b.token[i] = token; b.pos[i] = i; b.n_seq_id[i] = 1; b.seq_id[i][0] = 0; b.logits[i] = i in scored
        rc = lc.llama_decode(self.ctx, b); assert rc == 0, rc
    def log_probabilities(self, position):
        x = np.ctypeslib.as_array(lc.llama_get_logits_ith(self.ctx, position), (self.size,)).astype(np.float64)
        x -= x.max(); x -= np.log(np.exp(x).sum())
        return x

reference = Loaded(a.reference, False)
models = {"repacked": Loaded(a.model, True), "plain": Loaded(a.model, False)}
ids = reference.tokens(open(a.text, "rb").read())
bos = lc.llama_vocab_bos(reference.vocab) if lc.llama_vocab_get_add_bos(reference.vocab) else None
scored = range(a.c // 2, a.c - 1)
for start in range(0, min(len(ids) // a.c, a.w) * a.c, a.c):
    window = ids[start:start + a.c]
    if bos is not None: window[0] = bos
    for m in (reference, *models.values()): m.run(window, scored)
    for j in scored:
        q = reference.log_probabilities(j); reference.nll.append(-q[window[j + 1]])
        for m in models.values():
            p = m.log_probabilities(j)
            m.nll.append(-p[window[j + 1]]); m.kl.append(max(0.0, float((np.exp(q) * (q - p)).sum())))
n = len(reference.nll)
perplexity = lambda m: float(np.exp(np.mean(m.nll)))
print(json.dumps({"peer": "llama.cpp (llama-cpp-python " + lc.__version__ + ")", "scored_tokens": n, "reference_perplexity": perplexity(reference),
    **{name: {"kl_mean": float(np.mean(m.kl)), "kl_standard_error": float(np.std(m.kl) / n ** 0.5), "perplexity": perplexity(m)} for name, m in models.items()}}))
