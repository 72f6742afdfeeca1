"""Learning rates that fall from the head down."""


def rate(eta, decay, layer, n_layers):
    """layer: n_layers for head and pooler, -1 for embeddings, else from 0 next to the embeddings on."""
    for _ in range(n_layers - layer):
        eta = eta * decay
    return eta
