"""What runs inside a training process. Light imports only; nothing here may stop, slow or change the training."""
