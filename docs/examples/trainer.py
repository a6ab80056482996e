"""MuonGrokfast in transformers' Trainer: give it the optimizer, the Trainer makes the schedule."""

import tempfile

from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from distforge.optim import MuonGrokfast

model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
)
rows = [{"input_ids": [i % 64 for i in range(start, start + 16)]} for start in range(64)]
rows = [{**row, "labels": row["input_ids"]} for row in rows]
with tempfile.TemporaryDirectory() as folder:
    trainer = Trainer(
        model,
        TrainingArguments(folder, num_train_epochs=5, report_to=[], use_cpu=True, logging_steps=5),
        train_dataset=rows,
        optimizers=(MuonGrokfast(model, lr=0.01), None),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
