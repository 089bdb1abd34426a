"""Policy engines: vLLM behind Ray, a model in this process, an endpoint, a script. All of them sample
completions from token ids behind one protocol."""
