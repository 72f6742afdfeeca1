"""One multi-tensor step per device: a table of tensors in, all of them updated."""

import os

PROCESS = os.getpid()
"""That imported the package: threads do not survive a fork, and the runtime of a forked child waits for them."""
