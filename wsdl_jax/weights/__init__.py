"""Published weights in and out: layouts, tensors, files."""
