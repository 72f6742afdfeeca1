"""Methods in the training loops of other libraries; a file for each, which needs that library."""
