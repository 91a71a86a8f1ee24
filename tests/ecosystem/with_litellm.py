"""LiteLLM steers by the model's name, through its OpenAI-compatible provider."""

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
    "max_tokens": 40,
}
steered = litellm.completion(model=f"openai/{variant}", **chat).choices[0].message.content
assert word in steered, steered
plain = litellm.completion(model=f"openai/{base}", **chat).choices[0].message.content
assert word not in plain, plain
chunks = litellm.completion(model=f"openai/{variant}", stream=True, **chat)
streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
assert streamed == steered, (streamed, steered)
print(steered)
