"""How much memory a call holds at its peak, as torch's profiler sees it."""

import json

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
