"""BERT with a classifier on its pooled output, as in the original recipe: dropout 0.3, then one linear layer."""

from typing import Any, NamedTuple, cast

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
}
BLOCKS = ("BertLayer",)
DROPOUT = 0.3
CLASSES = 2


class Outcome(NamedTuple):
    loss: Tensor
    logits: Tensor


class Classifier(nn.Module):
    def __init__(self, size: str, vocabulary: int, context: int) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        config = BertConfig(vocab_size=vocabulary, max_position_embeddings=context, pad_token_id=0, **SIZES[size])
        self.bert = cast(nn.Module, BertModel(config))
        self.dropout = nn.Dropout(DROPOUT)
        self.classifier = nn.Linear(config.hidden_size, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Outcome:
        pooled: Any = self.bert(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        logits = self.classifier(self.dropout(pooled))
        return Outcome(cross_entropy(logits, labels), logits)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters for AdamW: biases and the weights of LayerNorm do not decay."""
    spared = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if name == "bias" or isinstance(module, nn.LayerNorm)
    }
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if id(p) not in spared], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) in spared], "weight_decay": 0.0},
    ]
