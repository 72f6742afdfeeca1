"""The sides of a benchmark of whole training: this project's loop, transformers.Trainer, and MT-DNN's way."""
