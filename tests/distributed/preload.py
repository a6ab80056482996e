"""Imported once by the fork server, so that each rank of each test starts in milliseconds.

Kept free of CUDA and of threads: ranks are forked from the process that imported this.
"""

# ruff: noqa: E402 - what is imported reads the environment that is set here

import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["OMP_NUM_THREADS"] = "1"

import torch

torch.set_num_threads(1)

from distforge.training.distributed import prepare_deepspeed

prepare_deepspeed()

import deepspeed
import deepspeed.module_inject.auto_ep_layer
import deepspeed.runtime.zero.muon.muon_optimizer
import transformers.models.gpt2.modeling_gpt2
import transformers.models.llama.modeling_llama

import distforge.baking
import distforge.quietstar
import distforge.training.engine
from distforge.reports import canvas

# As in conftest.py: plots of few pixels.
canvas._DPI = 20

__all__ = ["deepspeed", "distforge", "transformers"]
