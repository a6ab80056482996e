"""The machinery of training: processes, the engine, the supervised loop, checkpoints."""
