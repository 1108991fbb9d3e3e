"""The engine look-alike: vLLM's routes, metrics, log and process tree, without a model."""
