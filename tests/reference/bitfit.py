"""What BitFit trains: of the pretrained parameters those whose name ends with ``bias``, and all new ones."""

NEW = ("classifier", "pooler", "heads")


def trained(name):
    return name.endswith("bias") or name.split(".")[0] in NEW
