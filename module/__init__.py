"""Algorithms on tensors: noise stream, sensitivity, optimizers, fine-tuning methods."""
