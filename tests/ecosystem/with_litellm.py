"""LiteLLM steers by the model's name, through its OpenAI-compatible provider, and shows the headers that say so."""

import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the network for prices

import litellm

url, base, variant, word = sys.argv[1:]
chat = {
    "messages": [{"role": "user", "content": "What should I cook for dinner tonight?"}],
    "api_base": f"{url}/v1",
    "api_key": "none",
    "temperature": 0,
    "max_tokens": 24,
}
answer = litellm.completion(model=f"openai/{variant}", **chat)
headers = answer._hidden_params["additional_headers"]
assert headers["llm_provider-x-saeclamp-spec"].startswith("sha256:"), headers
assert int(headers["llm_provider-x-saeclamp-edited-tokens"]) > 40, headers
steered = answer.choices[0].message.content
assert word in steered, steered
plain = litellm.completion(model=f"openai/{base}", **chat).choices[0].message.content
assert word not in plain, plain
chunks = litellm.completion(model=f"openai/{variant}", stream=True, **chat)
streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
assert streamed == steered, (streamed, steered)
print(steered)
