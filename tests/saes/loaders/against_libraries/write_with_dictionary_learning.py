"""
Writes trainers' folders with dictionary_learning's own classes, and what they compute. argv: the folder.

The package's front imports nnsight, which clashes with our transformers; its classes need torch alone, so they are imported
without it. Backups have the layout of the repository's training.py; what they should compute is `scale_biases`'s.
"""

import importlib.util
import json
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import save_file

spec = importlib.util.find_spec("dictionary_learning")
assert spec is not None
package = types.ModuleType("dictionary_learning")
package.__path__ = list(spec.submodule_search_locations or [])
sys.modules["dictionary_learning"] = package
dictionary = importlib.import_module("dictionary_learning.dictionary")
batch_top_k = importlib.import_module("dictionary_learning.trainers.batch_top_k")
matryoshka = importlib.import_module("dictionary_learning.trainers.matryoshka_batch_top_k")
top_k = importlib.import_module("dictionary_learning.trainers.top_k")

folder = Path(sys.argv[1])
D_IN, D_SAE, K, NORM_FACTOR = 16, 40, 8, 2.5
CLASSES = {
    "AutoEncoder": lambda: dictionary.AutoEncoder(D_IN, D_SAE),
    "GatedAutoEncoder": lambda: dictionary.GatedAutoEncoder(D_IN, D_SAE),
    "AutoEncoderTopK": lambda: top_k.AutoEncoderTopK(D_IN, D_SAE, K),
    "BatchTopKSAE": lambda: batch_top_k.BatchTopKSAE(D_IN, D_SAE, K),
    "MatryoshkaBatchTopKSAE": lambda: matryoshka.MatryoshkaBatchTopKSAE(D_IN, D_SAE, K, [10, 30]),
}


def write(name: str, ae: torch.nn.Module, is_backup: bool) -> None:
    about = {"dict_class": type(ae).__name__, "layer": 5, "k": K, "lm_name": "EleutherAI/pythia-70m"}
    path = folder / name
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"trainer": about, "buffer": {"io": "out"}}))
    optimizer = torch.optim.Adam(ae.parameters())
    sum(parameter.sum() for parameter in ae.parameters()).backward()
    optimizer.step()
    content = ae.state_dict()
    if is_backup:
        content = {"step": 12, "ae": content, "optimizer": optimizer.state_dict(), "config": about}
        content["norm_factor"] = NORM_FACTOR
    torch.save(content, path / "ae.pt")
    ae.load_state_dict(torch.load(path / "ae.pt")["ae"] if is_backup else content)  # as training goes on
    if is_backup:
        ae.scale_biases(NORM_FACTOR)
    compute(name, ae)


@torch.no_grad()
def compute(name: str, ae: torch.nn.Module) -> None:
    x = (NORM_FACTOR if name.endswith("-backup") else 1.0) * (torch.randn(200, D_IN) + 0.2)
    acts = ae.encode(x)
    (folder / "expected").mkdir(exist_ok=True)
    save_file({"x": x, "acts": acts.contiguous(), "out": ae.decode(acts)}, folder / "expected" / f"{name}.safetensors")


torch.manual_seed(0)
for cls, make in CLASSES.items():
    for is_backup in (False, True):
        made = make()
        for parameter in made.parameters():
            parameter.data.add_(0.3 * torch.randn_like(parameter))
        if hasattr(made, "threshold"):
            made.threshold.fill_(0.6)
        write(f"{cls}-backup" if is_backup else cls, made, is_backup)

loaded = dictionary.AutoEncoder.from_pretrained(folder / "AutoEncoder" / "ae.pt")
compute("AutoEncoder-loaded", loaded)
