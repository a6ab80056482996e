"""Where rollouts are generated, and how long for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from distforge.errors import InputError, require_choice, require_in

Dtype = Literal["float32", "bfloat16", "float16"]
Engine = Literal["hf", "vllm"]


@dataclass(frozen=True)
class RolloutConfig:
    """Where rollouts are generated, and how long for.

    engine: "hf", the learner's own code, or "vllm", which answers questions for reward functions,
        in actors alone. The loss weighs tokens by what engine and learner make of them.
    python: the interpreter that has vLLM, where that is not the learner's; on every machine that
        has an actor.
    num_actors: Ray actors that generate; 0 generates in the learner's process, without Ray.
    staleness: learner steps by which a rollout's policy may lag; 0 is synchronous and bit by bit
        reproducible with any number of actors.
    address: of a running Ray cluster ("host:port", or "auto" for one on this machine); empty
        starts one here, on the loopback interface alone, and stops it at the end.
    threads_per_actor: torch threads of an engine, in the learner's process too while it generates;
        0 is one in an actor and, in the learner's process, as many as that has.
    cpus_per_actor: CPUs that Ray reserves for an actor; may be a fraction.
    gpus_per_actor: GPUs that Ray reserves for an actor; may be a fraction.
    timeout_seconds: longest wait for the rollouts of a step, the actors' start included.
    request_seconds: longest that one request may take an actor, loading new weights included;
        then the actor is killed and the request goes to another. Engines in the learner's process
        cannot be interrupted.
    max_attempts: at one request, before the run ends with the last traceback.
    max_restarts: of an actor in a row, without a rollout between, before it is given up; the run
        ends when all are.
    dtype: of the engines' weights: "float32", "bfloat16" or "float16". Half the memory, and where
        the processor has it, half the time; the loss weighs tokens by what both make of them.
    object_store_mib: shared memory for weights and large results, of a cluster started here.
    """

    engine: Engine = "hf"
    python: str = ""
    num_actors: int = 0
    staleness: int = 0
    address: str = ""
    threads_per_actor: int = 1
    cpus_per_actor: float = 1.0
    gpus_per_actor: float = 0.0
    timeout_seconds: float = 1800.0
    request_seconds: float = 600.0
    max_attempts: int = 3
    max_restarts: int = 3
    object_store_mib: int = 1024
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        at_least = {
            "num_actors": 0,
            "staleness": 0,
            "threads_per_actor": 0,
            "cpus_per_actor": 0,
            "gpus_per_actor": 0,
            "max_attempts": 1,
            "max_restarts": 0,
            # Ray starts with no less.
            "object_store_mib": 80,
        }
        for name, least in at_least.items():
            require_in(f"[{least}, inf)", **{name: getattr(self, name)})
        for name in ("timeout_seconds", "request_seconds"):
            require_in("(0, inf)", **{name: getattr(self, name)})
        require_choice("rollouts.dtype", self.dtype, get_args(Dtype))
        require_choice("rollouts.engine", self.engine, get_args(Engine))
        if self.engine == "vllm" and self.num_actors == 0:
            raise InputError(
                "rollouts.engine is 'vllm' with rollouts.num_actors 0, and vLLM runs in actors "
                "alone; set num_actors to 1 or more"
            )
        if self.python and self.engine != "vllm":
            raise InputError(
                f"rollouts.python is {self.python!r} with rollouts.engine {self.engine!r}, which "
                "runs in the learner's interpreter; set engine to 'vllm', or leave python empty"
            )
        if self.request_seconds > self.timeout_seconds:
            raise InputError(
                f"request_seconds is {self.request_seconds}, more than timeout_seconds "
                f"({self.timeout_seconds}); a step waits for at least one request"
            )
        if self.address and self.num_actors == 0:
            raise InputError(
                f"address is {self.address!r} with num_actors 0, which uses no cluster; "
                "set num_actors, or leave address empty"
            )
