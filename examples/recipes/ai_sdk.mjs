// The AI SDK: headers go along with each call. `npm install ai @ai-sdk/openai-compatible`
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText } from "ai";

const url = process.env.GATEWAY_URL ?? "http://localhost:8080";
const gateway = createOpenAICompatible({ name: "gateway", baseURL: `${url}/v1`, apiKey: process.env.GATEWAY_KEY });
const headers = { "X-Session-Id": "session-1" };

for (const prompt of ["A HARD question.", "What time is it?"]) {
  const { text } = await generateText({ model: gateway("auto"), prompt, headers });
  console.log(text);
}
