"""The trained model: forward pass, sharding, adapters, critic, reference, export and checkpoints."""
