"""The acting side: renderer, engine, rollout and the records they leave."""
