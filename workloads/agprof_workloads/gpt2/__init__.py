"""A GPT-2 language model with peft's methods on CPython's documentation, under DeepSpeed, DDP, FSDP2 or Horovod."""
