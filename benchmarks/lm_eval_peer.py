"""lm-evaluation-harness asked one task of local files; run by the interpreter that has it.

    python benchmarks/lm_eval_peer.py JOB.json RESULT.json

The job names model, task, files, template or not, shots and items. Tasks are the harness's own
gsm8k (3.0) and arc_easy (1.0), read from its package; only where the rows lie is put in. It knows
nothing of distforge.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lm_eval
import torch
import yaml
from lm_eval.models.huggingface import HFLM

FILES = {"gsm8k": "gsm8k/gsm8k.yaml", "arc": "arc/arc_easy.yaml"}


def task_of(job: dict[str, Any]) -> dict[str, Any]:
    """The harness's own task, with the job's rows; solved examples are the first ones."""
    path = Path(lm_eval.__file__).parent / "tasks" / FILES[job["task"]]
    task: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    data = {"test": job["test"], "train": job["train"]}
    task |= {"task": job["task"], "dataset_path": "json", "dataset_name": None}
    task |= {"dataset_kwargs": {"data_files": data}, "num_fewshot": job["shots"]}
    task |= {"fewshot_config": {"sampler": "first_n"}, "tag": None}
    task.pop("validation_split", None)
    if job["task"] == "gsm8k":
        task["generation_kwargs"]["max_gen_toks"] = job["max_new_tokens"]
    return task


def verdicts(task: str, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By question in the order of the file: what was asked, what was answered, what was right."""
    found: dict[int, dict[str, Any]] = {}
    for sample in samples:
        one = found.setdefault(sample["doc_id"], {"asked": sample["arguments"][0][0]})
        if task == "gsm8k":
            name = {"strict-match": "strict", "flexible-extract": "flexible"}[sample["filter"]]
            one[name] = bool(sample["exact_match"])
            one["answered"] = sample["resps"][0][0]
        else:
            one |= {name: bool(sample[name]) for name in ("acc", "acc_norm")}
            one["nats"] = [float(answer[0]) for answer in sample["filtered_resps"]]
    return [found[index] for index in sorted(found)]


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    model = HFLM(job["model"], dtype=job["dtype"], device="cpu", batch_size=job["batch_size"])
    found = lm_eval.simple_evaluate(
        model=model,
        tasks=[task_of(job)],
        samples={job["task"]: job["items"]},
        apply_chat_template=job["template"],
        fewshot_as_multiturn=False,
        bootstrap_iters=0,
    )
    assert found is not None
    result = {
        "version": version("lm_eval"),
        "verdicts": verdicts(job["task"], found["samples"][job["task"]]),
    }
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
