"""Train a model: steps, losses, optimizers, checkpoints and the working directory."""
