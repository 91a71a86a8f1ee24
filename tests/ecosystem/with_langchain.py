"""LangChain's ChatOpenAI, which knows nothing of steering, steers by the model's name, and shows the headers that say so."""

import sys

from langchain_openai import ChatOpenAI

url, base, variant, word = sys.argv[1:]
question = "What should I cook for dinner tonight?"


def chat(model: str) -> ChatOpenAI:
    return ChatOpenAI(
        model=model,
        base_url=f"{url}/v1",
        api_key="none",
        temperature=0,
        max_tokens=24,
        include_response_headers=True,
    )


steered, plain = chat(variant).invoke(question), chat(base).invoke(question)
assert word in steered.content, steered.content
assert word not in plain.content, plain.content
assert steered.response_metadata["model_name"] == variant, steered.response_metadata
headers = steered.response_metadata["headers"]
assert headers["x-saeclamp-spec"].startswith("sha256:"), headers
assert int(headers["x-saeclamp-edited-tokens"]) > 40, headers
assert "x-saeclamp-spec" not in plain.response_metadata["headers"]
streamed = "".join(chunk.content for chunk in chat(variant).stream(question))
assert streamed == steered.content, (streamed, steered.content)
print(streamed)
