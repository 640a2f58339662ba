// Drives a running service with the official openai package of npm: BASE_URL KEY MODEL. NODE_PATH does not hold for modules, so the
// package's folder comes first: PACKAGE BASE_URL KEY MODEL.
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const [folder, baseURL, apiKey, model] = process.argv.slice(2);
const OpenAI = createRequire(`${folder}/`)("openai").default;
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "What is Deephold?" }];
const trip = {
  type: "object",
  properties: { city: { type: "string", enum: ["Oslo", "Rome"] }, days: { type: "integer", minimum: 1, maximum: 9 } },
  required: ["city", "days"],
  additionalProperties: false,
};
const fits = (text) => {
  const value = JSON.parse(text);
  assert.ok(["Oslo", "Rome"].includes(value.city) && value.days >= 1 && value.days <= 9, text);
};
const ask = (more) => client.chat.completions.create({ model, messages, max_tokens: 120, reasoning_effort: "none", ...more });

assert.ok((await client.models.list()).data.some((m) => m.id === model));
const whole = (await ask({ temperature: 0 })).choices[0].message.content;
let joined = "";
let usage;
for await (const chunk of await ask({ temperature: 0, stream: true, stream_options: { include_usage: true } })) {
  joined += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(joined, whole);
assert.ok(usage.completion_tokens > 0);

const form = { type: "json_schema", json_schema: { name: "trip", strict: true, schema: trip } };
fits((await ask({ response_format: form, seed: 3 })).choices[0].message.content);
const tools = [{ type: "function", function: { name: "plan_trip", parameters: trip, strict: true } }];
const called = (await ask({ tools, tool_choice: "required", parallel_tool_calls: false })).choices[0];
assert.equal(called.finish_reason, "tool_calls");
fits(called.message.tool_calls[0].function.arguments);
const stream = client.chat.completions.stream({
  model, messages, max_tokens: 120, reasoning_effort: "none", tools, tool_choice: "required", parallel_tool_calls: false,
});
const final = await stream.finalChatCompletion();
fits(final.choices[0].message.tool_calls[0].function.arguments);
const turns = [...messages, called.message, { role: "tool", tool_call_id: called.message.tool_calls[0].id, content: "booked" }];
assert.ok((await ask({ messages: turns, tools })).choices[0].finish_reason);

// A stream that is given up ends its work; errors are of the package's own kinds.
const given = await ask({ stream: true });
for await (const _ of given) break;
given.controller.abort();
await assert.rejects(ask({ temperature: 9 }), (e) => e instanceof OpenAI.BadRequestError && e.param === "temperature");
await assert.rejects(ask({ model: "absent" }), OpenAI.NotFoundError);
await assert.rejects(new OpenAI({ baseURL, apiKey: "dh_wrong", maxRetries: 0 }).models.list(), OpenAI.AuthenticationError);
console.log("ok");
