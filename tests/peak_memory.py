"""How much memory is held: by all tensors now, and by a call at its peak."""

import gc
import json
import warnings

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(step, path):
    """Most bytes that one call holds at a time beyond what was there before, by the profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    recorded.export_chrome_trace(str(path))
    events = json.loads(path.read_text())["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def held_bytes() -> int:
    """Of all tensors that live on the CPU, each memory once."""
    gc.collect()
    storages: dict[int, int] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # isinstance wakes torch's deprecated aliases
        for thing in gc.get_objects():
            if issubclass(type(thing), torch.Tensor) and thing.device.type == "cpu":
                storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(storages.values())
