"""MuonGrokfast under accelerate: prepared like any optimizer, clipped by accelerate."""

import torch
from accelerate import Accelerator
from torch import nn

from distforge.optim import MuonGrokfast

accelerator = Accelerator(cpu=True)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 8))
optimizer = MuonGrokfast(model, lr=0.02)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=100)
model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
inputs = torch.randn(64, 8)
losses = []
for _ in range(60):
    loss = (model(inputs) - inputs.flip(1)).square().mean()
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
    losses.append(loss.item())
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
