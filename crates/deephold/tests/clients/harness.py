"""lm-eval on a local task: its log-likelihoods are the engine's, and chats generate: BASE_URL KEY MODEL TOKENIZER_FOLDER."""
import glob
import json
import os
import subprocess
import sys
import tempfile
import openai
from transformers import AutoTokenizer

base, key, model, folder = sys.argv[1:5]
client = openai.OpenAI(base_url=base, api_key=key)
tokenizer = AutoTokenizer.from_pretrained(folder)
rows = [
    {"question": "What is Deephold?", "choices": ["A system that runs DeepSeek models", "A kind of cheese"], "answer": 0},
    {"question": "Does data leave your machines?", "choices": ["Yes, always", "No"], "answer": 1},
]
choice = "task: local_choice\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: DATA\ntest_split: test\noutput_type: multiple_choice\ndoc_to_text: \"{{question}}\\n\"\ndoc_to_choice: \"{{choices}}\"\ndoc_to_target: answer\nmetric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
words = choice.replace("local_choice", "local_words").replace("multiple_choice", "generate_until\ngeneration_kwargs:\n  until: [\"\\n\\n\"]\n  max_gen_toks: 24").replace("doc_to_choice: \"{{choices}}\"\n", "").replace("acc\n", "exact_match\n").replace("doc_to_target: answer", "doc_to_target: \"{{choices[answer]}}\"")


def run(task, kind, path, *more):
    where = f"model={model},base_url={base}{path},tokenizer={folder},num_concurrent=2,max_length=1024"
    subprocess.run([sys.executable, "-m", "lm_eval", "run", "--model", kind, "--model_args", where, "--tasks", task, "--include_path", ".", "--log_samples", "--output_path", task, *more],
                   check=True, env={**os.environ, "OPENAI_API_KEY": key, "HF_HUB_OFFLINE": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (file,) = glob.glob(f"{task}/**/samples_*.jsonl", recursive=True)
    with open(file) as lines:
        return [json.loads(line) for line in lines]


with tempfile.TemporaryDirectory() as place:
    os.chdir(place)
    with open("data.jsonl", "w") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
    for name, text in [("local_choice", choice), ("local_words", words)]:
        with open(name + ".yaml", "w") as out:
            out.write(text.replace("DATA", place + "/data.jsonl"))
    compared = 0
    for sample in run("local_choice", "local-completions", "/completions"):
        for argument, response in zip(sample["arguments"].values() if isinstance(sample["arguments"], dict) else sample["arguments"], sample["resps"]):
            context, continuation = list(argument.values()) if isinstance(argument, dict) else argument
            # As the harness does it: space at the end of the context belongs to what follows.
            before, whole = tokenizer.encode(context.rstrip()), tokenizer.encode(context + continuation)
            scored = client.completions.create(model=model, prompt=whole, echo=True, logprobs=1, max_tokens=0).choices[0].logprobs
            expected = sum(scored.token_logprobs[len(before):])
            got = float(response[0][0])
            assert abs(got - expected) <= 1e-4 * abs(expected), (context, continuation, got, expected)
            compared += 1
    assert compared == 4, compared
    said = [sample["resps"][0][0] for sample in run("local_words", "local-chat-completions", "/chat/completions", "--apply_chat_template")]
    assert len(said) == 2 and all(said), said
print(f"{compared} log-likelihoods are the engine's; the chats said {said}")
