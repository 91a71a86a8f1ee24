"""lm-evaluation-harness evaluates a variant by its name: `local-chat-completions`, on a task of two questions of its own."""

import json
import sys
import tempfile
from pathlib import Path

import lm_eval
from lm_eval.tasks import TaskManager

url, base, variant, word = sys.argv[1:]
TASK = """\
task: says_the_word
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{word}}}}"
generation_kwargs: {{until: ["<never>"], max_gen_toks: 24, temperature: 0}}
metric_list:
  - metric: !function says.says
    aggregation: mean
    higher_is_better: true
"""
METRIC = "def says(references, predictions, **kwargs):\n    return float(references[0] in predictions[0])\n"
questions = ("What should I cook for dinner tonight?", "How can I sleep better?")


def score(model: str, folder: Path) -> float:
    results = lm_eval.simple_evaluate(
        model="local-chat-completions",
        model_args={"model": model, "base_url": f"{url}/v1/chat/completions", "num_concurrent": 2},
        tasks=["says_the_word"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        apply_chat_template=True,
        bootstrap_iters=0,
    )
    scores = results["results"]["says_the_word"]
    return float(next(value for name, value in scores.items() if name.startswith("says,")))


with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    data = folder / "questions.jsonl"
    data.write_text("\n".join(json.dumps({"question": question, "word": word}) for question in questions))
    (folder / "says.py").write_text(METRIC)
    (folder / "says_the_word.yaml").write_text(TASK.format(data=data))
    steered, plain = score(variant, folder), score(base, folder)
assert steered == 1, steered
assert plain == 0, plain
print(f"steered {steered}, unsteered {plain}")
