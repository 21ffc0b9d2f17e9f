"""LangGraph: the thread's id is the session's. `pip install langgraph langchain-openai`."""

import os

from langchain_core.runnables import RunnableConfig
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph

gateway = os.environ.get("GATEWAY_URL", "http://localhost:8080")
model = ChatOpenAI(model="auto", base_url=f"{gateway}/v1", api_key=os.environ["GATEWAY_KEY"])


def chat(state: MessagesState, config: RunnableConfig) -> MessagesState:
    """Ask the model, in the session of the thread."""
    headers = {"X-Session-Id": config["configurable"]["thread_id"]}
    return {"messages": [model.invoke(state["messages"], extra_headers=headers)]}


graph = StateGraph(MessagesState).add_node(chat).add_edge(START, "chat").compile(checkpointer=InMemorySaver())

if __name__ == "__main__":
    for prompt in ("A HARD question.", "What time is it?"):
        state = graph.invoke({"messages": [("user", prompt)]}, {"configurable": {"thread_id": "session-1"}})
        print(state["messages"][-1].content)
