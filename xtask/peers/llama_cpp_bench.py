#!/usr/bin/env python3
"""Times llama.cpp on a GGUF file, as the peer to be measured beside: prompt processing, decoding, and decoding of a batch.

usage: llama_cpp_bench.py MODEL.gguf [-p 512] [-n 64] [-b 1,8] [-d DEPTH] [-t THREADS] [-r 3] [--plain]
-d: decode after DEPTH tokens of context for each sequence; --plain: without the peer's repacked weights (sometimes faster: take the better)
needs: pip install llama-cpp-python   (built from source for this machine's processor; takes a quarter of an hour on two cores)
-p 0: no prompt; -n 0: no decoding
--start: only the seconds from loading to the most probable token behind a prompt of -p tokens, without Python's own start ("start_s")
prints one JSON line: {"peer","model","threads","load_s","pp_tok_s":{"512":[..]},"tg_tok_s":{"1":[..],"8":[..]}}  (each of -r runs)
"""
import argparse, ctypes, json, os, time
import llama_cpp as lc

ap = argparse.ArgumentParser()
ap.add_argument("model"); ap.add_argument("-p", type=int, default=512); ap.add_argument("-n", type=int, default=64)
ap.add_argument("-b", default="1,8"); ap.add_argument("-t", type=int, default=os.cpu_count()); ap.add_argument("-r", type=int, default=3)
ap.add_argument("-d", type=int, default=0); ap.add_argument("--plain", action="store_true")
ap.add_argument("--start", action="store_true")
a = ap.parse_args()
batches = [int(x) for x in a.b.split(",")]
quiet = lc.llama_log_callback(lambda *_: None); lc.llama_log_set(quiet, None)
lc.llama_backend_init()
mp = lc.llama_model_default_params(); mp.n_gpu_layers = 0; mp.use_extra_bufts = not a.plain
t0 = time.perf_counter(); model = lc.llama_model_load_from_file(a.model.encode(), mp)
load_s = time.perf_counter() - t0; assert model, "llama.cpp cannot load " + a.model
cp = lc.llama_context_default_params()
cp.n_ctx = max(a.p, max(batches) * (a.d + a.n + 16)) + 512; cp.n_batch = 2048; cp.n_ubatch = 512; cp.n_threads = cp.n_threads_batch = a.t
cp.n_seq_max = max(batches)
if hasattr(cp, "kv_unified"): cp.kv_unified = True
ctx = lc.llama_init_from_model(model, cp)
mem = lc.llama_get_memory(ctx)
batch = lc.llama_batch_init(2048, 0, max(batches))

def fill(rows):                                     # rows of (token, position, sequence, wants logits)
    batch.n_tokens = len(rows)
    for i, (tok, pos, seq, lg) in enumerate(rows):
        batch.token[i] = tok; batch.pos[i] = pos; batch.n_seq_id[i] = 1; batch.seq_id[i][0] = seq; batch.logits[i] = lg
def decode(rows):
    fill(rows); rc = lc.llama_decode(ctx, batch); assert rc == 0, rc
    lc.llama_synchronize(ctx)
def prompt(n):
    lc.llama_memory_clear(mem, True)
    t = time.perf_counter(); feed(n, 0)
    return n / (time.perf_counter() - t)
def feed(n, seq):                                   # n prompt tokens, in batches of 2048
    for at in range(0, n, 2048): decode([((i * 37) % 1000 + 5, i, seq, i == n - 1) for i in range(at, min(n, at + 2048))])
def generate(b):                                    # -r runs after a context that is filled once
    lc.llama_memory_clear(mem, True)
    for s in range(b): feed(a.d, s)
    decode([(7, a.d, s, True) for s in range(b)])
    runs = []
    for _ in range(a.r):
        t = time.perf_counter()
        for i in range(a.d + 1, a.d + a.n + 1): decode([((i * 11 + s) % 1000 + 5, i, s, True) for s in range(b)])
        runs.append(b * a.n / (time.perf_counter() - t))
        for s in range(b): lc.llama_memory_seq_rm(mem, s, a.d + 1, -1)
    return [round(r, 3) for r in runs]

if a.start:
    feed(a.p, 0)
    logits = lc.llama_get_logits_ith(ctx, -1)
    max(range(lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(model))), key=logits.__getitem__)
    print(json.dumps({"start_s": [round(time.perf_counter() - t0, 3)]})); raise SystemExit

prompt(64)                                          # warm-up
out = {"peer": "llama.cpp (llama-cpp-python " + lc.__version__ + ")", "model": os.path.basename(a.model), "threads": a.t, "depth": a.d, "plain": a.plain,
       "load_s": round(load_s, 3), "system": lc.llama_print_system_info().decode(),
       "pp_tok_s": {str(a.p): [round(prompt(a.p), 3) for _ in range(a.r)]} if a.p else {},
       "tg_tok_s": {str(b): generate(b) for b in batches} if a.n else {}}
print(json.dumps(out))
