"""Inspect evaluates a variant by its name: a task that asks for the word that steering brings."""

import os
import sys
import tempfile

from inspect_ai import Task
from inspect_ai import eval as evaluate
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import includes

url, base, variant, word = sys.argv[1:]
os.environ |= {"SAECLAMP_BASE_URL": f"{url}/v1", "SAECLAMP_API_KEY": "none", "INSPECT_DISPLAY": "none"}
questions = ("What should I cook for dinner tonight?", "How can I sleep better?")


def accuracy(model: str, folder: str) -> float:
    task = Task(
        dataset=[Sample(input=question, target=word) for question in questions],
        scorer=includes(),
        config=GenerateConfig(temperature=0, max_tokens=24),
    )
    (log,) = evaluate(task, model=f"openai-api/saeclamp/{model}", log_dir=folder)
    assert log.status == "success", log.error
    assert log.results is not None
    return float(log.results.scores[0].metrics["accuracy"].value)


with tempfile.TemporaryDirectory() as folder:
    steered, plain = accuracy(variant, folder), accuracy(base, folder)
assert steered == 1, steered
assert plain == 0, plain
print(f"steered {steered}, unsteered {plain}")
