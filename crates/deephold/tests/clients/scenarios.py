"""Sends the requests of scenarios.json and holds the answers against their checks: BASE_URL KEY MODEL [FILE].

With FILE what does not hold is written there as JSON instead of being a failure: that is how another server is compared.
Only Python's standard library is needed."""
import json
import os
import re
import sys
import urllib.error
import urllib.request

base, key, model = sys.argv[1:4]
report = sys.argv[4] if len(sys.argv) > 4 else None
TYPES = {"string": str, "array": list, "object": dict, "number": (int, float)}
ABSENT = object()


def ask(case, **more):
    body = None
    if "raw" in case:
        body = case["raw"].encode()
    elif "body" in case:
        body = dict(case["body"], **more)
        if body.get("model") == "MODEL":
            body["model"] = model
        if isinstance(body.get("prompt"), str) and body["prompt"].startswith("REPEAT:"):
            _, text, count = body["prompt"].split(":")
            body["prompt"] = text * int(count)
        body = json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", "anthropic-version": "2023-06-01"}
    method = case.get("method", "POST")
    request = urllib.request.Request(base + case["path"], data=body, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def events(text):
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    parsed = [json.loads(line) for line in lines if line != "[DONE]"]
    said = [c["delta"].get("content") or "" for e in parsed for c in e.get("choices", []) if "delta" in c]
    return {"events": parsed, "last": parsed[-1] if parsed else {}, "done": lines[-1:] == ["[DONE]"], "text": "".join(said)}


def answer(case):
    status, text = ask(case)
    if status != case.get("status", 200):
        return None, f"status {status} instead of {case.get('status', 200)}: {text[:160]}"
    if case.get("text"):
        return {"text": text}, None
    if case.get("stream") is True:
        return events(text), None
    if case.get("stream") == "both":
        _, streamed = ask(case, stream=True)
        return dict(events(streamed), whole=json.loads(text)), None
    if case.get("twice"):
        return {"first": json.loads(text), "second": json.loads(ask(case)[1])}, None
    if not case["checks"]:
        return {}, None
    return json.loads(text), None


def find(value, path):
    for part in path.split("/"):
        if isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, dict) and part in value:
            value = value[part]
        else:
            return ABSENT
    return value


def holds(whole, path, kind, wanted):
    value = find(whole, path)
    if value is ABSENT:
        return False
    numbers = isinstance(value, (int, float)) and not isinstance(value, bool)
    match kind:
        case "equals":
            return value == wanted
        case "one_of":
            return value in wanted
        case "type":
            return isinstance(value, TYPES[wanted])
        case "length":
            return len(value) == wanted
        case "at_least":
            return numbers and value >= wanted
        case "at_most":
            return numbers and value <= wanted
        case "contains":
            return wanted in value
        case "lacks":
            return wanted not in value
        case "matches":
            return re.search(wanted, value) is not None
        case "same_as":
            return value == find(whole, wanted)
        case "sum_of":
            return value == sum(find(whole, p) for p in wanted)
        case "json_keys":
            return sorted(json.loads(value)) == wanted
    raise AssertionError(kind)


with open(os.path.join(os.path.dirname(__file__), "scenarios.json")) as file:
    cases = json.load(file)
differences, checks = [], 0
for case in cases:
    try:
        whole, problem = answer(case)
        found = [problem] if problem else []
        for path, kind, wanted in case["checks"] if whole is not None else []:
            checks += 1
            if not holds(whole, path, kind, wanted):
                value = find(whole, path)
                shown = "absent" if value is ABSENT else json.dumps(value)[:80]
                found.append(f"`{path}` {kind} {json.dumps(wanted)}: {shown}")
    except Exception as error:  # A server that closes the connection or answers no JSON differs as well.
        found = [f"{type(error).__name__}: {error}"[:160]]
    if found:
        differences.append({"scenario": case["name"], "found": found})
if report:
    with open(report, "w") as out:
        json.dump(differences, out, indent=1)
print(f"{len(cases)} scenarios, {checks} checks, {len(differences)} differ")
for difference in differences:
    print(f"- {difference['scenario']}: {'; '.join(difference['found'])}")
assert report or not differences
