// The Vercel AI SDK as a client, with one streamed conversation with a tool: FOLDER BASE_URL KEY MODEL.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [folder, baseURL, apiKey, modelName] = process.argv.slice(2);
const require = createRequire(`${folder}/`);
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const { streamText, generateObject, tool, stepCountIs, jsonSchema } = await load("ai");
const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");

const model = createOpenAICompatible({ name: "deephold", baseURL, apiKey, supportsStructuredOutputs: true })(modelName);
const trip = jsonSchema({
  type: "object",
  properties: { city: { type: "string", enum: ["Oslo", "Rome"] }, days: { type: "integer", minimum: 1, maximum: 9 } },
  required: ["city", "days"],
  additionalProperties: false,
});
const fits = (value) => assert.ok(["Oslo", "Rome"].includes(value.city) && value.days >= 1 && value.days <= 9, JSON.stringify(value));
const planned = [];
const result = streamText({
  model,
  prompt: "Plan a trip, please.",
  maxOutputTokens: 120,
  maxRetries: 0,
  providerOptions: { deephold: { reasoningEffort: "none" } },
  tools: { plan_trip: tool({ description: "Plans a trip.", inputSchema: trip, execute: async (input) => (planned.push(input), "booked") }) },
  // The first step calls, the second answers.
  prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" }),
  stopWhen: stepCountIs(2),
  onError: ({ error }) => { throw error; },
});
let said = "";
for await (const part of result.textStream) said += part;
assert.ok(planned.length > 0 && said.length > 0, `${planned.length} calls, ${said.length} characters`);
planned.forEach(fits);
const { object } = await generateObject({ model, schema: trip, prompt: "A trip.", maxOutputTokens: 120, maxRetries: 0, providerOptions: { deephold: { reasoningEffort: "none" } } });
fits(object);
console.log("ok");
