"""A conversation by each SDK, as its user would write it: the history is kept, and the session's id sent along."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from anthropic import Anthropic
from langchain_core.messages import AIMessageChunk, BaseMessage, HumanMessage
from langchain_openai import ChatOpenAI
from openai import OpenAI

KEY = "sk-realworld"


class Conversation(ABC):
    """What an SDK says to a gateway, and what comes back.

    *default_headers* are given to the client, *extra_headers* to each request. *headers* are those of the last answer.
    """

    def __init__(
        self,
        url: str,
        *,
        stream: bool,
        default_headers: dict[str, str] | None = None,
        extra_headers: dict[str, str] | None = None,
    ) -> None:
        self.stream = stream
        self.extra_headers = extra_headers or {}
        self.headers: Mapping[str, str] = {}
        self.history: list[Any] = []
        self.connect(url, default_headers or {})

    @abstractmethod
    def connect(self, url: str, default_headers: dict[str, str]) -> None:
        """Make the client."""

    @abstractmethod
    def say(self, prompt: str, model: str = "auto") -> str:
        """Return what the model answers to the history and this."""


class OpenAIChat(Conversation):
    """Chat completions by the SDK of OpenAI."""

    def connect(self, url: str, default_headers: dict[str, str]) -> None:
        self.client = OpenAI(base_url=f"{url}/v1", api_key=KEY, default_headers=default_headers, max_retries=0)

    def say(self, prompt: str, model: str = "auto") -> str:
        self.history.append({"role": "user", "content": prompt})
        raw = self.client.chat.completions.with_raw_response.create(
            model=model, messages=self.history, stream=self.stream, extra_headers=self.extra_headers
        )
        self.headers = raw.headers
        answer: Any = raw.parse()
        if self.stream:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices)
        else:
            text = answer.choices[0].message.content
        self.history.append({"role": "assistant", "content": text})
        return text


class OpenAIResponses(OpenAIChat):
    """Responses by the SDK of OpenAI."""

    def say(self, prompt: str, model: str = "auto") -> str:
        self.history.append({"role": "user", "content": prompt})
        raw = self.client.responses.with_raw_response.create(
            model=model, input=self.history, stream=self.stream, extra_headers=self.extra_headers
        )
        self.headers = raw.headers
        answer: Any = raw.parse()
        if self.stream:
            [answer] = [event.response for event in answer if event.type == "response.completed"]
        self.history += [item.to_dict() for item in answer.output]
        return str(answer.output_text)


class AnthropicMessages(Conversation):
    """Messages by the SDK of Anthropic."""

    def connect(self, url: str, default_headers: dict[str, str]) -> None:
        self.client = Anthropic(base_url=url, api_key=KEY, default_headers=default_headers, max_retries=0)

    def say(self, prompt: str, model: str = "auto") -> str:
        self.history.append({"role": "user", "content": prompt})
        asked: Any = {"model": model, "max_tokens": 100, "messages": self.history, "extra_headers": self.extra_headers}
        if self.stream:
            with self.client.messages.stream(**asked) as stream:
                self.headers = stream.response.headers
                answer = stream.get_final_message()
        else:
            raw = self.client.messages.with_raw_response.create(**asked)
            self.headers = raw.headers
            answer = raw.parse()
        self.history.append({"role": "assistant", "content": answer.content})
        return "".join(block.text for block in answer.content if block.type == "text")


class LangChainChat(Conversation):
    """LangChain's model for chat completions."""

    use_responses_api = False

    def connect(self, url: str, default_headers: dict[str, str]) -> None:
        self.model = ChatOpenAI(
            model="auto",
            base_url=f"{url}/v1",
            api_key=KEY,
            default_headers=default_headers,
            include_response_headers=True,
            use_responses_api=self.use_responses_api,
            max_retries=0,
        )

    def say(self, prompt: str, model: str = "auto") -> str:
        self.history.append(HumanMessage(prompt))
        asked: Any = {"model": model, "extra_headers": self.extra_headers}
        answer: BaseMessage
        if self.stream:
            answer = sum(self.model.stream(self.history, **asked), start=AIMessageChunk(content=""))
        else:
            answer = self.model.invoke(self.history, **asked)
        self.headers = answer.response_metadata["headers"]
        self.history.append(answer)
        return str(answer.text)


class LangChainResponses(LangChainChat):
    """LangChain's model for responses."""

    use_responses_api = True


CONVERSATIONS: list[type[Conversation]] = [
    OpenAIChat,
    OpenAIResponses,
    AnthropicMessages,
    LangChainChat,
    LangChainResponses,
]
