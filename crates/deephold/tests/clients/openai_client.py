"""Drives a running service with the official openai package: BASE_URL KEY MODEL HAS_TEMPLATE."""
import asyncio
import json
import sys
import openai

base, key, model, has_template = sys.argv[1:5]
client = openai.OpenAI(base_url=base, api_key=key, max_retries=0)
question = [{"role": "user", "content": "What is Deephold?"}]

assert model in [m.id for m in client.models.list().data]

# Plain completions: whole, streamed and counted alike; the same seed gives the same text.
ask = dict(model=model, prompt="Once upon a time", max_tokens=12, temperature=0.8, seed=11)
one = client.completions.create(**ask, logprobs=2)
assert one.choices[0].text == client.completions.create(**ask).choices[0].text
assert one.usage.completion_tokens <= 12 and one.usage.total_tokens == one.usage.prompt_tokens + one.usage.completion_tokens
assert "".join(one.choices[0].logprobs.tokens) == one.choices[0].text
assert all(len(top) <= 3 for top in one.choices[0].logprobs.top_logprobs)
streamed = list(client.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
assert "".join(c.choices[0].text for c in streamed if c.choices) == one.choices[0].text
assert streamed[-1].choices == [] and streamed[-1].usage.completion_tokens == one.usage.completion_tokens

# As evaluation harnesses ask: several prompts, and the log probabilities of their own tokens.
both = client.completions.create(model=model, prompt=["Once upon a time", "The end"], echo=True, logprobs=1, max_tokens=1, temperature=0)
assert [c.index for c in both.choices] == [0, 1] and both.choices[0].text.startswith("Once upon a time")
for scored in (c.logprobs for c in both.choices):
    assert scored.token_logprobs[0] is None and all(lp <= 0 for lp in scored.token_logprobs[1:])
    assert len(scored.tokens) == len(scored.top_logprobs) == len(scored.text_offset)

# Vectors: of length 1, the same as base64 (which the package asks for by itself) and as floats, alone and beside others.
texts = ["A cat sits on the mat.", "The cat is on a mat.", "Interest rates rose."]
vectors = [d.embedding for d in client.embeddings.create(model=model, input=texts).data]
dot = lambda a, b: sum(x * y for x, y in zip(a, b))
assert all(abs(dot(v, v) - 1) < 1e-5 for v in vectors) and dot(vectors[0], vectors[1]) > dot(vectors[0], vectors[2])
assert client.embeddings.create(model=model, input=texts[2], encoding_format="float").data[0].embedding == vectors[2]
short = client.embeddings.create(model=model, input=[texts[0]], dimensions=16)
assert len(short.data[0].embedding) == 16 and short.usage.prompt_tokens > 0

if has_template == "yes":
    chat = lambda **more: client.chat.completions.create(model=model, messages=question, max_tokens=16, **more)
    whole = chat(temperature=0, logprobs=True, top_logprobs=3)
    text = whole.choices[0].message.content
    assert text and whole.choices[0].finish_reason in ("stop", "length")
    assert all(len(t.top_logprobs) == 3 and t.logprob <= 0 for t in whole.choices[0].logprobs.content)
    assert "".join(c.choices[0].delta.content or "" for c in chat(temperature=0, stream=True) if c.choices) == text
    several = chat(n=3, temperature=1.5, seed=5)
    assert [c.index for c in several.choices] == [0, 1, 2]
    assert several.choices == chat(n=3, temperature=1.5, seed=5).choices
    first = text.split()[0]
    assert first not in chat(temperature=0, stop=[first]).choices[0].message.content
    # A stream that is closed early ends its work; the service goes on.
    stream = chat(temperature=0, stream=True)
    next(iter(stream))
    stream.close()
    assert chat(temperature=0).choices[0].message.content == text

    # Answers of a schema, and tool calls, streamed and not; models that think are told not to, so that a few tokens do.
    quiet = {} if model == "smollm" else {"reasoning_effort": "none"}
    trip = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"], "additionalProperties": False}
    def fits(text):
        value = json.loads(text)
        assert value["city"] in ("Oslo", "Rome") and 1 <= value["days"] <= 9 and len(value) == 2, value
    ask = lambda **more: client.chat.completions.create(**{"model": model, "messages": question, "max_tokens": 120, **quiet, **more})
    form = {"type": "json_schema", "json_schema": {"name": "trip", "strict": True, "schema": trip}}
    for choice in ask(response_format=form, n=3, temperature=1, seed=2).choices:
        fits(choice.message.content)
    with client.chat.completions.stream(model=model, messages=question, max_tokens=120, response_format=form, **quiet) as stream:
        stream.until_done()
        fits(stream.get_final_completion().choices[0].message.content)
    tools = [{"type": "function", "function": {"name": "plan_trip", "description": "Plans a trip.", "parameters": trip, "strict": True}}]
    for more in [{"tool_choice": "required"}, {"tool_choice": {"type": "function", "function": {"name": "plan_trip"}}}]:
        answer = ask(tools=tools, parallel_tool_calls=False, **more).choices[0]
        (call,) = answer.message.tool_calls
        assert answer.finish_reason == "tool_calls" and answer.message.content is None and call.function.name == "plan_trip"
        fits(call.function.arguments)
        with client.chat.completions.stream(model=model, messages=question, max_tokens=120, tools=tools, parallel_tool_calls=False, **quiet, **more) as stream:
            events = list(stream)
            (streamed,) = stream.get_final_completion().choices[0].message.tool_calls
        fits(streamed.function.arguments)
        assert any(e.type == "tool_calls.function.arguments.done" and e.name == "plan_trip" for e in events)
    # The same by the Responses API: items, events in order, schemas and calls, and their results in the next request.
    calm = {} if model == "smollm" else {"reasoning": {"effort": "none"}}
    respond = lambda **more: client.responses.create(**{"model": model, "input": question[0]["content"], "max_output_tokens": 120, "temperature": 0, "store": False, **calm, **more})
    said = respond()
    assert said.status in ("completed", "incomplete") and said.output_text == ask(temperature=0).choices[0].message.content
    events = list(respond(stream=True))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", f"response.{said.status}")
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == said.output_text == events[-1].response.output_text
    fits(respond(text={"format": {"type": "json_schema", "name": "trip", "schema": trip, "strict": True}}, temperature=1).output_text)
    flat = [{"type": "function", "name": "plan_trip", "parameters": trip, "strict": True}]
    made = respond(tools=flat, tool_choice="required", parallel_tool_calls=False)
    (item,) = [o for o in made.output if o.type == "function_call"]
    fits(item.arguments)
    with client.responses.stream(model=model, input="Plan it.", max_output_tokens=120, tools=flat, tool_choice="required", parallel_tool_calls=False, store=False, **calm) as stream:
        final = [e for e in stream][-1].response
    fits([o for o in final.output if o.type == "function_call"][0].arguments)
    turn = [{"role": "user", "content": "Plan it."}] + [o.model_dump(exclude_none=True) for o in made.output] + [{"type": "function_call_output", "call_id": item.call_id, "output": "booked"}]
    assert respond(input=turn, tools=flat).status in ("completed", "incomplete")
    for more, param in [({"previous_response_id": "resp_1"}, "previous_response_id"), ({"store": True}, "store"), ({"truncation": "auto"}, "truncation")]:
        try:
            respond(**more)
            raise SystemExit(f"{param} was taken")
        except openai.BadRequestError as e:
            assert e.param == param, e
    # The conversation goes on with the call's result; asynchronously as well.
    turns = question + [answer.message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "booked"}]
    assert ask(messages=turns, tools=tools).choices[0].finish_reason in ("stop", "length", "tool_calls")
    async def several():
        other = openai.AsyncOpenAI(base_url=base, api_key=key, max_retries=0)
        asked = [other.chat.completions.create(model=model, messages=question, max_tokens=120, response_format=form, seed=i, **quiet) for i in range(4)]
        for answer in await asyncio.gather(*asked):
            fits(answer.choices[0].message.content)
    asyncio.run(several())
    for more, param in [({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"contains": 1}}}}, "response_format"),
                        ({"tool_choice": "required"}, "tool_choice"), ({"prediction": {"type": "content", "content": "x"}}, "prediction")]:
        try:
            ask(**more)
            raise SystemExit(f"{param} was taken")
        except openai.BadRequestError as e:
            assert e.param == param, e
else:
    try:
        client.chat.completions.create(model=model, messages=question)
        raise SystemExit("a model without a template chats")
    except openai.BadRequestError as e:
        assert e.param == "messages", e

for error, call in [
    (openai.NotFoundError, lambda: client.completions.create(model="absent", prompt="x")),
    (openai.BadRequestError, lambda: client.completions.create(model=model, prompt="x", temperature=7)),
    (openai.BadRequestError, lambda: client.completions.create(model=model, prompt="word " * 100_000)),
    (openai.AuthenticationError, lambda: client.with_options(api_key="dh_wrong").completions.create(model=model, prompt="x")),
    (openai.APITimeoutError, lambda: client.with_options(timeout=0.001).completions.create(model=model, prompt="x", max_tokens=400, n=8, logit_bias={"0": -100, "1": -100, "2": -100})),
]:
    try:
        call()
        raise SystemExit(f"no {error.__name__}")
    except error:
        pass
print("ok")
