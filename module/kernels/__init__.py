"""One multi-tensor step per device: a table of tensors in, all of them updated."""
