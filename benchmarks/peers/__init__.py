"""What a whole training is compared with: this project's own loop, transformers.Trainer, and MT-DNN's way."""
