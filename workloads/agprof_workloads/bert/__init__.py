"""A BERT classifier on CPython's documentation, under DeepSpeed, DDP, FSDP2 or Horovod."""
