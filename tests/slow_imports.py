"""Libraries that take seconds to import, for the process that children are forked from; nothing here computes.

No file of this project is among them: a child reads its own environment.
"""

import jsonargparse  # noqa: F401
import numba.np.arraymath  # noqa: F401
import safetensors.torch  # noqa: F401
import scipy.stats  # noqa: F401
import sklearn.metrics  # noqa: F401
import tokenizers  # noqa: F401
import torch  # noqa: F401
import transformers.models.bert.modeling_bert  # noqa: F401
