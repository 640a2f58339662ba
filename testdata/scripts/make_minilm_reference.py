#!/usr/bin/env python3
"""Reference vectors of all-MiniLM-L6-v2 for twenty sentences in English and Chinese: token ids by the published tokenizer, and
the mean of the last layer's states scaled to length 1, in float32.

usage: make_minilm_reference.py FOLDER OUT.json     needs: torch, transformers (of the Python registry)
"""
import json, sys
import torch, transformers
from transformers import AutoModel, AutoTokenizer

folder, out = sys.argv[1:3]
sentences = [
    "The bank rejected the loan because of the applicant's credit history.", "The applicant was denied credit.",
    "A river bank covered with reeds.", "Steel plate with a long scratch near the edge.", "Surface defect: scratches on rolled steel.",
    "Traffic is heavy on the ring road this morning.", "The bearing vibrates and will fail within days.", "How do I rotate a TLS certificate?",
    "Naïve café, résumé — 3.14 & 50 % off!", "a", "银行因申请人的信用记录拒绝了贷款。", "申请人的贷款被拒绝。", "河岸上长满了芦苇。",
    "钢板边缘附近有一条长划痕。", "今天早上环路交通拥堵。", "轴承振动，几天内会失效。", "如何轮换 TLS 证书？", "深度求索模型的私有化部署。", "混排 English 与中文 123。",
    "The quick brown fox jumps over the lazy dog, again and again, until the sun goes down behind the hills and nobody watches any more.",
]
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, attn_implementation="eager").eval().float()
entries = []
for text in sentences:
    batch = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state[0]
    vector = torch.nn.functional.normalize(states.mean(0), dim=0)
    entries.append(dict(text=text, ids=batch["input_ids"][0].tolist(), vector=[float(f"{x:.7g}") for x in vector.tolist()]))
with open(out, "w") as f:
    json.dump(dict(torch=torch.__version__, transformers=transformers.__version__, entries=entries), f, ensure_ascii=False)
