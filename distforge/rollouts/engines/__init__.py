"""The engines behind `RolloutEngine` that are not the learner's own code.

To all of them the same things happen: weights of a version come in, prompts with a seed are
answered by one `Sampling`, and token ids go out with the log-probabilities that they were drawn
with. ``hf``, the reference, is `distforge.quietstar.thought_engine`; ``vllm`` is `vllm_engine`,
which runs where vLLM is installed and few of distforge's own needs are.
"""
