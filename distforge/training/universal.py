"""From a checkpoint of ZeRO 1 to 3 to one for any number of ranks and any of these stages.

The work is done by DeepSpeed's ds_to_universal. What its stages 1 and 2 look for and its stage 3
does not write, and the other way round, is added here.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
from pathlib import Path
from typing import Any

import torch

_MODEL_STATES = {
    False: "mp_rank_00_model_states.pt",
    True: "zero_pp_rank_0_mp_rank_00_model_states.pt",
}


def convert_to_universal(source: Path, target: Path, stage: int) -> None:
    """Rewrite DeepSpeed's checkpoint ``source`` as ``target``, to be loaded at ZeRO ``stage``.

    Call it inside `loading_plain_data`: DeepSpeed asks for all that a pickle may run.
    """
    from deepspeed.checkpoint.ds_to_universal import main

    arguments = argparse.Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=False,
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(arguments)
    sliced = (target / _MODEL_STATES[True]).is_file()
    if sliced != (stage == 3):
        shutil.copyfile(target / _MODEL_STATES[sliced], target / _MODEL_STATES[not sliced])
        _complete(target / "zero", to_stage_3=stage == 3)


def _complete(folder: Path, *, to_stage_3: bool) -> None:
    path = folder / "optimizer_state.pt"
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    parameters = [entry for entry in folder.iterdir() if entry.is_dir()]
    if to_stage_3:
        file = next(p / "step.pt" for p in parameters if (p / "step.pt").is_file())
        step = torch.load(file, weights_only=True)
        groups = state["param_groups"]
        state["optimizer_state_dict"] = {"state": {0: {"step": step}}, "param_groups": groups}
    else:
        import deepspeed

        saved = state["optimizer_state_dict"]
        state["param_groups"] = saved["param_groups"]
        state["ds_version"] = deepspeed.__version__
        for parameter in parameters:
            torch.save(saved["state"][0]["step"], parameter / "step.pt")
            for file in (parameter / f"{name}.pt" for name in ("fp32", "exp_avg", "exp_avg_sq")):
                torch.save({"param": torch.load(file, weights_only=True)}, file)
    torch.save(state, path)
