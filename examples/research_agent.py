"""An agent loop with tool calls, through the OpenAI SDK, that shows which model served each turn.

Start `python examples/fastapi_proxy.py` in one terminal, and in another `python examples/research_agent.py [BASE_URL]`.
The agent works on one task four times: plain and streamed, without a session and with one. It needs `openai`.
"""

import json
import sys
import uuid
from typing import Any

from openai import OpenAI, Stream
from openai.types.chat import ChatCompletionChunk

TASK = "Write a report on the two storage engines."
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "search",
            "description": "Search the documents.",
            "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
        },
    }
]
NOTES = {
    "storage engines": "Found two: a B-tree and a log-structured merge tree. Compare their write paths.",
    "write paths": "The B-tree writes in place, the merge tree appends. Now write the report.",
}


def search(query: str) -> str:
    """The agent's only tool."""
    return NOTES.get(query, "Nothing found.")


def run_agent(client: OpenAI, session_id: str | None, stream: bool) -> list[str]:
    """Work on the task until the model answers without a tool call, and return which model served each turn."""
    headers = {"X-Session-Id": session_id} if session_id else {}
    messages: list[Any] = [{"role": "user", "content": TASK}]
    models: list[str] = []
    while len(models) < 10:
        answer: Any = client.chat.completions.create(
            model="auto", messages=messages, tools=TOOLS, stream=stream, extra_headers=headers
        )
        model, message = read_stream(answer) if stream else (answer.model, answer.choices[0].message.model_dump())
        models.append(model)
        messages.append(message)
        if not message.get("tool_calls"):
            return models
        for call in message["tool_calls"]:
            result = search(**json.loads(call["function"]["arguments"]))
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
    raise RuntimeError("the model never came to an end")


def read_stream(chunks: Stream[ChatCompletionChunk]) -> tuple[str, dict[str, Any]]:
    """Put a streamed message together."""
    model, content, calls = "", "", dict[int, dict[str, Any]]()
    for chunk in chunks:
        model = chunk.model
        delta = chunk.choices[0].delta
        content += delta.content or ""
        for part in delta.tool_calls or []:
            call = calls.setdefault(
                part.index, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
            )
            call["id"] += part.id or ""
            if part.function:
                call["function"]["name"] += part.function.name or ""
                call["function"]["arguments"] += part.function.arguments or ""
    message: dict[str, Any] = {"role": "assistant", "content": content}
    return model, message | ({"tool_calls": list(calls.values())} if calls else {})


def main() -> None:
    base_url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
    with OpenAI(base_url=base_url, api_key="not-needed") as client:
        for session_id in (None, str(uuid.uuid4())):
            print(f"X-Session-Id: {session_id}" if session_id else "without X-Session-Id")
            for stream in (False, True):
                models = run_agent(client, session_id, stream)
                for turn, model in enumerate(models, start=1):
                    print(f"  {'streamed' if stream else 'plain'}, turn {turn}: {model}")


if __name__ == "__main__":
    main()
