"""The scenarios against llama.cpp's server, as the package xllamacpp carries it: MODEL.gguf REPORT.json."""
import os
import subprocess
import sys

import xllamacpp

model, report = sys.argv[1:3]
params = xllamacpp.CommonParams()
params.model.path = model
params.n_ctx = 4096
params.n_parallel = 4
params.use_jinja = True
params.endpoint_metrics = True
params.port = 0
server = xllamacpp.Server(params)
script = os.path.join(os.path.dirname(__file__), "scenarios.py")
done = subprocess.run([sys.executable, script, server.listening_address, "none", "any", report])
print(f"xllamacpp {xllamacpp.__version__}", flush=True)
# The server's threads do not end by themselves.
os._exit(done.returncode)
