from torch import nn


class RewardModel(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.config = base.config
        self.v_head = nn.Linear(base.config.hidden_size, 1, bias=False)
        self.rwtransformer = base

    def forward_value(self, ids):
        return self.v_head(self.rwtransformer(ids)[0]).squeeze(-1)
