"""An agent that loops: it asks, runs the tools that the model calls, and asks again, in three APIs."""

import json
from typing import Any

Body = dict[str, Any]


class Conversation:
    """One session of an agent: what it would send next. A model's answer is the tools that it calls, or none: a text.

    If *signed*, each answer carries state that only its own model can read.
    """

    path: str
    history: str

    def __init__(self, *, signed: bool = False) -> None:
        self.signed = signed
        self.items: list[Body] = []

    @property
    def body(self) -> Body:
        return {"model": "auto", self.history: self.items}

    def say(self, text: str) -> Body:
        """Take what a person says; return the request."""
        raise NotImplementedError

    def answer(self, model: str, calls: list[str]) -> None:
        """Take what a model answers."""
        raise NotImplementedError

    def run(self, calls: list[str]) -> Body:
        """Run the tools; return the request."""
        raise NotImplementedError


class Chat(Conversation):
    path, history = "/v1/chat/completions", "messages"

    def say(self, text: str) -> Body:
        self.items.append({"role": "user", "content": text})
        return self.body

    def answer(self, model: str, calls: list[str]) -> None:
        tools = [{"id": call, "type": "function", "function": {"name": "f", "arguments": "{}"}} for call in calls]
        text = None if calls else f"I am {model}."
        state = {"reasoning_details": [{"type": "reasoning.text", "signature": model}]} if self.signed else {}
        self.items.append({"role": "assistant", "content": text, "tool_calls": tools, **state})

    def run(self, calls: list[str]) -> Body:
        self.items += ({"role": "tool", "tool_call_id": call, "content": "done"} for call in calls)
        return self.body


class Messages(Conversation):
    path, history = "/v1/messages", "messages"

    def say(self, text: str) -> Body:
        reminder = {"type": "text", "text": "<system-reminder>\nBe kind.\n</system-reminder>"}
        self.items.append({"role": "user", "content": [reminder, {"type": "text", "text": text}]})
        return self.body

    def answer(self, model: str, calls: list[str]) -> None:
        content: list[Body] = [{"type": "thinking", "thinking": "hm", "signature": model}] if self.signed else []
        content += ({"type": "tool_use", "id": call, "name": "f", "input": {}} for call in calls)
        if not calls:
            content.append({"type": "text", "text": f"I am {model}."})
        self.items.append({"role": "assistant", "content": content})

    def run(self, calls: list[str]) -> Body:
        results = [{"type": "tool_result", "tool_use_id": call, "content": "done"} for call in calls]
        self.items.append({"role": "user", "content": results})
        return self.body


class Responses(Conversation):
    path, history = "/v1/responses", "input"

    def say(self, text: str) -> Body:
        self.items.append({"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]})
        return self.body

    def answer(self, model: str, calls: list[str]) -> None:
        if self.signed:
            self.items.append({"type": "reasoning", "summary": [], "encrypted_content": model})
        self.items += ({"type": "function_call", "call_id": call, "name": "f", "arguments": "{}"} for call in calls)
        if not calls:
            content = [{"type": "output_text", "text": f"I am {model}."}]
            self.items.append({"type": "message", "role": "assistant", "content": content})

    def run(self, calls: list[str]) -> Body:
        self.items += ({"type": "function_call_output", "call_id": call, "output": "done"} for call in calls)
        return self.body


APIS: tuple[type[Conversation], ...] = (Chat, Messages, Responses)


def signatures(body: bytes) -> set[str]:
    """Return the models that have signed something in a request."""
    found: set[str] = set()

    def keep(members: Body) -> Body:
        found.update(members[name] for name in ("signature", "encrypted_content") if name in members)
        return members

    json.loads(body, object_hook=keep)
    return found
