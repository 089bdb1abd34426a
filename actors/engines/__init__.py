"""Policy engines, which sample completions from token ids: vLLM behind Ray, a model in this process, an
endpoint, a script."""
