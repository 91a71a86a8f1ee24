"""openai-python steers by the model's name: chat, completions, responses, streams."""

import sys

import openai

url, base, variant, word = sys.argv[1:]
question = "What should I cook for dinner tonight?"
client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
assert {base, variant} <= {model.id for model in client.models.list()}

chat = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 24}
steered = client.chat.completions.create(model=variant, **chat)
text = steered.choices[0].message.content
assert word in text, text
assert steered.model == variant
assert word not in client.chat.completions.create(model=base, **chat).choices[0].message.content
stream = client.chat.completions.create(model=variant, stream=True, **chat)
streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
assert streamed == text, streamed
response = client.responses.create(model=variant, input=question, temperature=0, max_output_tokens=24)
assert response.output_text == text, response.output_text
with client.responses.stream(model=variant, input=question, temperature=0, max_output_tokens=24) as events:
    parts = [event.delta for event in events if event.type == "response.output_text.delta"]
assert "".join(parts) == text, parts
print(text)
