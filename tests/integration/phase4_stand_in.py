"""What phase 4 does with a model of phase 3, without anything of distforge: ``python FILE MODEL``.

It takes nobody's word: files are hashed against the manifest, the statement is read, and only then
is the model loaded with bare transformers, asked, robbed of a layer, saved, and asked once more.
"""

import hashlib
import json
import os
import sys
import tempfile

THINKING = (
    "<think>",
    "</think>",
    "<step>",
    "<reason>",
    "<mece>",
    "<falsify>",
    "<expert>",
    "<doubt>",
)


def check_files(directory):
    """Every file is listed with its size and hash, and none is missing."""
    entries = {e["path"]: e for e in read_json(directory, "manifest.json")}
    present = {
        os.path.relpath(os.path.join(root, name), directory)
        for root, _, names in os.walk(directory)
        for name in names
    }
    require(present == {*entries, "manifest.json"}, "the files are not those of the manifest")
    for path, entry in entries.items():
        with open(os.path.join(directory, path), "rb") as stream:
            content = stream.read()
        right = len(content) == entry["bytes"]
        right = right and hashlib.sha256(content).hexdigest() == entry["sha256"]
        require(right, f"{path} is not what the manifest says")


def check_statement(stated):
    require(stated["phase"] == 3, "not of phase 3")
    require(stated["verdict"] == "PASS", f"the verdict is {stated['verdict']}")
    require(0.85 <= stated["baked_accuracy"] <= 1, "baked too little")
    require(set(stated["thinking_tokens"]) == set(THINKING), "thinking tokens are missing")
    for name, measure in stated["theater"]["measures"].items():
        require(measure["low"] > measure["threshold"], f"{name} does not clear its threshold")


def consume(directory, stated):
    """Load, ask, prune one layer, save, load and ask again; the two answers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    for token, index in stated["thinking_tokens"].items():
        require(tokenizer.encode(token, add_special_tokens=False) == [index], f"{token} is split")

    def ask(model):
        asked = tokenizer("Question: What is 12 + 34?\n", return_tensors="pt")
        with torch.no_grad():
            written = model.generate(asked["input_ids"], max_new_tokens=8)
        require(written.shape[1] > asked["input_ids"].shape[1], "nothing was generated")
        return tokenizer.decode(written[0, asked["input_ids"].shape[1] :])

    model = AutoModelForCausalLM.from_pretrained(directory)
    layers, before = model.config.num_hidden_layers, ask(model)
    del model.model.layers[-1]
    model.config.num_hidden_layers = layers - 1
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[: layers - 1]
    with tempfile.TemporaryDirectory() as pruned:
        model.save_pretrained(pruned)
        tokenizer.save_pretrained(pruned)
        smaller = AutoModelForCausalLM.from_pretrained(pruned)
        require(len(smaller.model.layers) == layers - 1, "the layer is still there")
        return before, ask(smaller)


def read_json(directory, name):
    with open(os.path.join(directory, name), encoding="utf-8") as stream:
        return json.load(stream)


def require(right, otherwise):
    if not right:
        sys.exit(f"phase 4 refuses it: {otherwise}")


if __name__ == "__main__":
    check_files(sys.argv[1])
    statement = read_json(sys.argv[1], "handoff.json")
    check_statement(statement)
    answers = consume(sys.argv[1], statement)
    foreign = [name for name in sys.modules if name.split(".")[0] == "distforge"]
    print(json.dumps({"answers": answers, "distforge": foreign}))
