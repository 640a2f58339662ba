"""LangChain and LiteLLM as clients, each with one streamed conversation with a tool: BASE_URL KEY MODEL."""
import json
import sys

base, key, model = sys.argv[1:4]
question = "Plan a trip, please."
trip = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city", "days"], "additionalProperties": False}
tool = {"type": "function", "function": {"name": "plan_trip", "description": "Plans a trip.", "parameters": trip}}


def fits(value):
    assert value["city"] in ("Oslo", "Rome") and 1 <= value["days"] <= 9, value


from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

chat = ChatOpenAI(base_url=base, api_key=key, model=model, temperature=0, max_tokens=120, max_retries=0, reasoning_effort="none")
whole = None
for chunk in chat.bind_tools([tool], tool_choice="required", parallel_tool_calls=False).stream([HumanMessage(question)]):
    whole = chunk if whole is None else whole + chunk
(call,) = whole.tool_calls
fits(call["args"])
turns = [HumanMessage(question), whole, ToolMessage("booked", tool_call_id=call["id"])]
said = "".join(chunk.content for chunk in chat.stream(turns))
assert said, "LangChain got no words"
fits(chat.with_structured_output(trip | {"title": "trip"}, method="json_schema").invoke(question))
vector = OpenAIEmbeddings(base_url=base, api_key=key, model=model, check_embedding_ctx_length=False).embed_query("A cat.")
assert abs(sum(x * x for x in vector) - 1) < 1e-4

import litellm

litellm.drop_params = False
ask = dict(model=f"openai/{model}", api_base=base, api_key=key, temperature=0, max_tokens=120, num_retries=0)
chunks = list(litellm.completion(**ask, messages=[{"role": "user", "content": question}], tools=[tool], tool_choice="required", parallel_tool_calls=False, stream=True, extra_body={"reasoning_effort": "none"}))
built = litellm.stream_chunk_builder(chunks).choices[0].message
fits(json.loads(built.tool_calls[0].function.arguments))
messages = [{"role": "user", "content": question}, built.model_dump(exclude_none=True, include={"role", "content", "tool_calls"}),
            {"role": "tool", "tool_call_id": built.tool_calls[0].id, "content": "booked"}]
said = "".join(c.choices[0].delta.content or "" for c in litellm.completion(**ask, messages=messages, stream=True))
assert said, "LiteLLM got no words"
print("ok")
