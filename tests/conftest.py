"""The environment of every test, set before torch or DeepSpeed can be imported."""

import os
from pathlib import Path

# DeepSpeed looks for an accelerator on import; on a machine without one it must be told.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
# DeepSpeed's own Muon, imported with its ZeRO, otherwise compiles for up to a minute.
os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
# A test that reaches for the network fails at once instead of waiting for a time-out.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
