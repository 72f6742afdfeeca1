"""A finished run put to use: read back, exported, scored on texts.

``load`` builds the network of a run directory or of an exported folder, and ``prediction`` turns texts into logits.
``export`` writes such a folder, ``head_layout`` says which families can be exported exactly, and ``card`` writes the
model card.
"""
