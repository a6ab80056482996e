"""MuonGrokfast with fully_shard: torchrun --nproc-per-node 2 docs/examples/fsdp2.py"""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from distforge.optim import MuonGrokfast

dist.init_process_group("gloo")
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 8))
fully_shard(model)
optimizer = MuonGrokfast(model, lr=0.02)
inputs = torch.randn(64, 8)[dist.get_rank() :: dist.get_world_size()]
losses = []
for _ in range(60):
    loss = (model(inputs) - inputs.flip(1)).square().mean()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
dist.destroy_process_group()
