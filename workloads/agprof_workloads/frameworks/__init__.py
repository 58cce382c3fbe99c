"""One training loop, four frameworks: DeepSpeed, DDP, FSDP2 and Horovod behind `forward`, `backward` and `step`.

A training script describes its optimizer in a `Recipe`, asks `wrap` for a `Training` and writes its loop once:

    training = wrap("ddp", model, recipe)
    for batch in batches:
        loss = training.forward(**batch).loss
        training.backward(loss)
        if training.step():
            ...  # an update was made
"""

FRAMEWORKS = ("deepspeed", "ddp", "fsdp2", "horovod")
ALLREDUCE = ("default", "ring", "naive", "driver")
