"""A conversation of several turns with tools, in which each question must be looked up: BASE_URL KEY MODEL."""
import json
import sys
import openai

base, key, model = sys.argv[1:4]
client = openai.OpenAI(base_url=base, api_key=key, max_retries=0, timeout=300)
stock = {"bearing": 42, "gasket": 7}
orders = []


def look_up(part):
    return {"part": part, "in_stock": stock.get(part, 0)}


def order(part, quantity):
    orders.append((part, quantity))
    return {"ordered": quantity, "part": part, "number": "PO-1187"}


def tool(name, about, **properties):
    parameters = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": parameters}}


part = {"type": "string", "enum": ["bearing", "gasket", "valve"]}
tools = [
    tool("look_up_stock", "How many of a part are in stock.", part=part),
    tool("order_part", "Orders a quantity of a part.", part=part, quantity={"type": "integer", "minimum": 1, "maximum": 100}),
]
run = {"look_up_stock": look_up, "order_part": order}
messages = [{"role": "system", "content": "You help in a storehouse. Use the tools; never guess."}]


def turn(question, streamed):
    """Asks, runs the calls until the model answers in words, and gives those and the names of what was called."""
    messages.append({"role": "user", "content": question})
    called = []
    for choice in ("required", "none"):
        if called:
            # With results at hand a model this small would rather call again than read them, unless it is asked to.
            messages.append({"role": "user", "content": "So, what is the answer? One sentence."})
        ask = dict(model=model, messages=messages, tools=tools, tool_choice=choice, parallel_tool_calls=False, temperature=0, max_tokens=200)
        if streamed:
            with client.chat.completions.stream(**ask) as stream:
                stream.until_done()
                choice = stream.get_final_completion().choices[0]
        else:
            choice = client.chat.completions.create(**ask).choices[0]
        messages.append(choice.message.model_dump(exclude_none=True, include={"role", "content", "tool_calls"}))
        if choice.finish_reason != "tool_calls":
            return choice.message.content, called
        for call in choice.message.tool_calls:
            called.append(call.function.name)
            result = run[call.function.name](**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": json.dumps(result)})
    raise SystemExit(f"it calls without end: {messages}")


answer, called = turn("How many bearings are in stock?", False)
assert called == ["look_up_stock"] and "42" in answer, (answer, called)
answer, called = turn("And how many gaskets?", True)
assert called == ["look_up_stock"] and "7" in answer, (answer, called)
answer, called = turn("Please order 5 valves.", False)
assert "order_part" in called and ("valve", 5) in orders, (answer, called, orders)
print(f"{len(messages)} messages, {orders}, the last: {answer}")
