"""One fine-tuning run: encoder, network, loop, checkpoints, results."""
