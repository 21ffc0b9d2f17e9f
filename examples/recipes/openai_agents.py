"""OpenAI Agents: the id of a run's session goes along as a header. `pip install openai-agents`."""

import os

from agents import Agent, ModelSettings, Runner, set_default_openai_client, set_tracing_disabled
from openai import AsyncOpenAI

gateway = os.environ.get("GATEWAY_URL", "http://localhost:8080")
set_tracing_disabled(True)
set_default_openai_client(AsyncOpenAI(base_url=f"{gateway}/v1", api_key=os.environ["GATEWAY_KEY"]))


def ask(prompt: str, session_id: str) -> str:
    """Return what the agent answers."""
    settings = ModelSettings(extra_headers={"X-Session-Id": session_id})
    agent = Agent(name="helper", model="auto", model_settings=settings)
    return str(Runner.run_sync(agent, prompt).final_output)


if __name__ == "__main__":
    for prompt in ("A HARD question.", "What time is it?"):
        print(ask(prompt, "session-1"))
