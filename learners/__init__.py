"""The learning side: buffer, advantages, losses, the learner with its model, SFT, and weights on their way to
the engines."""
