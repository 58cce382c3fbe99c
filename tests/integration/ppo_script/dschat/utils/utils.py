import torch


def moving_average(model, model_ema, beta=0.992):
    with torch.no_grad():
        for parameter, average in zip(model.parameters(), model_ema.parameters(), strict=True):
            average.data.copy_(torch.lerp(parameter.data, average.data, beta))
