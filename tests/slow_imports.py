"""What takes seconds to import, for the process that children are forked from; nothing here computes."""

import transformers.models.bert.modeling_bert  # noqa: F401

import mt_dnn.run  # noqa: F401
import mt_dnn.trained.export  # noqa: F401
import mt_dnn.trained.load  # noqa: F401
