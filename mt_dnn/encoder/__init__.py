"""A pretrained encoder, from the files on a disk to hidden states.

``source`` finds its folder, ``files`` reads configuration and weights, ``limits`` says which examples fit into its
tables, ``batch`` makes packed or padded batches of a token cache, ``slot_layout`` lays the tokens of a packed batch out
for ``attention``, ``last_layer`` computes the first tokens alone where no other is read, and ``model`` is the encoder
itself. Nothing here knows of tasks, methods or training.
"""
