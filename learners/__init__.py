"""Scored groups into gradients: buffer, advantage, loss, learner, weights on their way out."""
