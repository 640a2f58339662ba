"""Drives a running service with the official anthropic package: BASE_URL KEY MODEL FIXTURE [AGENT_MODEL]."""
import json
import sys
import anthropic

base, key, model, fixture = sys.argv[1:5]
agent_model = sys.argv[5] if len(sys.argv) > 5 else None
client = anthropic.Anthropic(base_url=base, api_key=key, max_retries=0)
question = [{"role": "user", "content": "What is Deephold?"}]
quiet = {"thinking": {"type": "disabled"}}
# Newer packages know no temperature, but send it.
ask = lambda temperature=0, **more: client.messages.create(**{"model": model, "max_tokens": 120, "messages": question, "extra_body": {"temperature": temperature}, **quiet, **more})

whole = ask()
assert whole.type == "message" and whole.stop_reason == "end_turn" and whole.content[0].type == "text"
assert whole.usage.input_tokens + whole.usage.cache_read_input_tokens > 0 and whole.usage.output_tokens > 0
text = whole.content[0].text
with client.messages.stream(model=model, max_tokens=120, messages=question, extra_body={"temperature": 0}, **quiet) as stream:
    kinds = [event.type for event in stream]
    assert stream.get_final_message().content[0].text == text
assert kinds[0] == "message_start" and kinds[-1] == "message_stop" and "content_block_start" in kinds, kinds
assert client.messages.count_tokens(model=model, messages=question).input_tokens == whole.usage.input_tokens + whole.usage.cache_read_input_tokens
assert ask(max_tokens=3).stop_reason == "max_tokens"
stopped = ask(stop_sequences=["guide"])
assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "guide"), stopped
assert ask(system=[{"type": "text", "text": "Be short.", "cache_control": {"type": "ephemeral"}}]).content
first, rest = text.split(" that", 1)
assert ask(messages=question + [{"role": "assistant", "content": first}]).content[0].text == " that" + rest

trip = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city", "days"], "additionalProperties": False}
tools = [{"name": "plan_trip", "description": "Plans a trip.", "input_schema": trip}, {"name": "stay", "input_schema": {"type": "object", "additionalProperties": False}}]


def check(message, names):
    (call,) = [block for block in message.content if block.type == "tool_use"]
    assert message.stop_reason == "tool_use" and call.name in names, message
    assert call.name == "stay" or (call.input["city"] in ("Oslo", "Rome") and 1 <= call.input["days"] <= 9)
    return call


for choice, names in [({"type": "any", "disable_parallel_tool_use": True}, ("plan_trip", "stay")), ({"type": "tool", "name": "plan_trip"}, ("plan_trip",))]:
    called = ask(tools=tools, tool_choice=choice, temperature=1)
    call = check(called, names)
    with client.messages.stream(model=model, max_tokens=120, messages=question, tools=tools, tool_choice=choice, **quiet) as stream:
        stream.until_done()
        check(stream.get_final_message(), names)
form = {"format": {"type": "json_schema", "schema": trip}, "effort": "low"}
for more in [{}, {"tools": tools, "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}]:
    answer = ask(output_config=form, temperature=1, **more)
    if answer.stop_reason != "tool_use":
        assert answer.stop_reason == "end_turn", answer
        value = json.loads(answer.content[0].text)
        assert value["city"] in ("Oslo", "Rome") and 1 <= value["days"] <= 9
turns = question + [{"role": "assistant", "content": [block.model_dump(exclude_none=True, include={"type", "id", "name", "input", "text"}) for block in called.content]},
                    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "booked"}]}, {"type": "text", "text": "And now?"}]}]
assert ask(messages=turns, tools=tools).stop_reason

# A conversation in the shape of a coding agent's: a long system prompt, many tools, several turns of calls.
with open(fixture) as file:
    agent = json.load(file)
agent["model"] = agent_model or model
counted = client.messages.count_tokens(**{k: agent[k] for k in ("model", "system", "tools", "messages")})
assert counted.input_tokens > 500
if agent_model:
    agent["extra_body"] = {"temperature": agent.pop("temperature")}
    answer = client.messages.create(**{**agent, "max_tokens": 60})
    assert answer.stop_reason in ("end_turn", "max_tokens", "tool_use")
    again = client.messages.create(**{**agent, "max_tokens": 60})
    assert again.content == answer.content or again.stop_reason == "tool_use"
    assert again.usage.cache_read_input_tokens > counted.input_tokens / 2, again.usage

for error, call in [
    (anthropic.NotFoundError, lambda: ask(model="absent")),
    (anthropic.BadRequestError, lambda: ask(temperature=1.5)),
    (anthropic.BadRequestError, lambda: ask(messages=[{"role": "user", "content": [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "x"}}]}])),
    (anthropic.BadRequestError, lambda: ask(messages=question + [{"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "00" * 32}]}])),
    (anthropic.AuthenticationError, lambda: client.with_options(api_key="dh_wrong").messages.create(model=model, max_tokens=1, messages=question)),
]:
    try:
        call()
        raise SystemExit(f"no {error.__name__}")
    except error as e:
        assert e.body["type"] == "error" and e.body["error"]["type"] and e.request_id, e.body
print("ok")
