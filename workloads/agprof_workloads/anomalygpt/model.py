"""AnomalyGPT: where the image differs from "a photo of a flawless ...", told to a language model as soft tokens."""

import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

import agprof
from agprof_workloads.anomalygpt.data import Batch
from agprof_workloads.anomalygpt.imagebind import ImageBind
from agprof_workloads.anomalygpt.images import normalised, read_cropped
from agprof_workloads.anomalygpt.losses import dice, focal
from agprof_workloads.anomalygpt.prompts import (
    AFTER_IMAGE,
    BEFORE_IMAGE,
    IGNORED,
    class_sentences,
    encode_conversation,
    pad_right,
)
from agprof_workloads.anomalygpt.sizes import GRID_SIDE, IMAGE_SIDE, PROMPT_GRID_SIDE, Size
from agprof_workloads.anomalygpt.switches import Switches
from agprof_workloads.anomalygpt.tokenizer import SentenceTokenizer, Tokenizer

SIMILARITY_SCALE = 100
ANOMALOUS_ABOVE = 0.3
BANK_PROBABILITY = 0.5
QUARTER_TURNS = 4
LORA_DROPOUT = 0.1
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
LLM_CONTEXT = 2048
FAITHFUL = Switches()
TRAINABLE_PARTS = {
    "decoder": "image_decoder.",
    "prompt": "prompt_learner.",
    "proj": "llama_proj.",
    "lora": "lora_",
}


class ImageDecoder(nn.Module):
    """One linear map per tapped block, from patch features to the space of the sentences."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.fc = nn.ModuleList(nn.Linear(size.vision_width, size.shared_width) for _ in size.taps)

    def forward(self, tapped: Sequence[Tensor]) -> list[Tensor]:
        """257 x B x width each -> B x 256 x shared each; the class token is dropped."""
        return [layer(tokens[1:].transpose(0, 1)) for layer, tokens in zip(self.fc, tapped, strict=True)]


class PromptLearner(nn.Module):
    """An anomaly map -> 18 tokens for the language model: 9 free ones, then 9 read off the map."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = size.prompt_channels
        for before, after in pairwise(channels):
            layers += [nn.Conv2d(before, after, kernel_size=3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        layers.append(nn.Conv2d(channels[-1], size.llm_width, kernel_size=5))
        self.meta_net = nn.Sequential(*layers)
        self.base_prompts = nn.Parameter(torch.randn(PROMPT_GRID_SIDE**2, size.llm_width))

    def forward(self, anomaly_map: Tensor) -> Tensor:
        """B x 1 x 224 x 224 -> B x 18 x llm width."""
        from_map = self.meta_net(anomaly_map).flatten(2).transpose(1, 2)
        return torch.cat([self.base_prompts.expand(len(from_map), -1, -1), from_map], dim=1)


@dataclass(frozen=True)  # no slots: DeepSpeed's ZeRO-3 looks for tensors in the __dict__ of what forward returns
class Outcome:
    """What one micro-step comes to. The pixel losses are None for a batch without masks."""

    loss: Tensor
    language: Tensor
    focal: Tensor | None
    dice: Tensor | None
    accuracy: Tensor | float
    """A tensor with ``read_per_step``."""
    tokens: int
    """Tokens that the language model read, without padding."""
    positions: int
    """The same with padding."""
    samples: int


class AnomalyGPT(nn.Module):
    """The whole model. ``forward`` takes a batch and returns its losses.

    The names of the four top-level parts of the released deltas (``image_decoder``, ``prompt_learner``,
    ``llama_model``, ``llama_proj``) are kept, so that those files load unchanged.
    """

    def __init__(
        self,
        size: Size,
        sentence_tokenizer: SentenceTokenizer,
        tokenizer: Tokenizer,
        *,
        llm: nn.Module | None = None,
        longest_text: int = 1024,
        switches: Switches = FAITHFUL,
        unused_towers: bool = False,
    ) -> None:
        super().__init__()
        self.visual_encoder = ImageBind(size, unused_towers=unused_towers)
        self.image_decoder = ImageDecoder(size)
        self.prompt_learner = PromptLearner(size)
        self.llama_model: Any = with_lora(llm or random_llama(size), size.lora_rank)
        self.llama_proj = nn.Linear(size.shared_width, size.llm_width)
        self.sentence_tokenizer = sentence_tokenizer
        self.tokenizer = tokenizer
        self.longest_text = longest_text
        self.switches = switches
        self.class_states: dict[str, Tensor] = {}
        self.banks: dict[Path, list[Tensor]] = {}
        self.class_ids: dict[str, tuple[Tensor, Tensor]] = {}

    def forward(self, batch: Batch) -> Outcome:
        weight = self.llama_proj.weight
        images = batch.images.to(weight.device, weight.dtype)

        with agprof.range("vision_tower"), torch.no_grad():
            image_embedding, tapped = self.visual_encoder.vision(images)
        if not self.switches.quiet:
            print_samples(batch)
        with agprof.range("text_tower"):
            states = self.states(batch.class_names)
        with agprof.range("decoder"):
            maps = [anomaly_maps(features, states) for features in self.image_decoder(tapped)]
            anomaly_map = torch.stack([both[:, 1] for both in maps]).mean(dim=0)

        focal_loss = dice_loss = None
        if batch.masks is not None:
            with agprof.range("losses"):
                target = (batch.masks.to(weight.device) > ANOMALOUS_ABOVE).float()
                on_device = self.switches.focal_on_device
                focal_loss = torch.stack([focal(both, target, on_device=on_device) for both in maps]).sum()
                dice_loss = torch.stack([dice(both[:, 1], target) for both in maps]).sum()

        if batch.paths is not None:
            anomaly_map = self.with_memory_bank(anomaly_map, images, tapped, batch.paths)

        with agprof.range("prompt_learner"):
            prompts = self.prompt_learner(anomaly_map.unsqueeze(1).to(weight.dtype))
        with agprof.range("llm"):
            embeddings, mask, labels, tokens = self.sequence(self.llama_proj(image_embedding), prompts, batch)
            answer = self.llama_model(inputs_embeds=embeddings, attention_mask=mask, labels=labels, use_cache=False)

        with agprof.range("losses"):
            loss = answer.loss
            if focal_loss is not None and dice_loss is not None:
                loss = loss + focal_loss + dice_loss
            right, learned = guessed_tokens(answer.logits, labels)
            accuracy = right / learned if self.switches.read_per_step else right.item() / learned.item()
        return Outcome(loss, answer.loss, focal_loss, dice_loss, accuracy, tokens, mask.numel(), len(images))

    def states(self, class_names: list[str]) -> Tensor:
        """B x 2 x shared: what a normal and an abnormal object of each image's class reads like.

        The tower is frozen and the sentences are few, yet the original encodes them anew for every image of every
        step, and so does this.
        """
        if self.switches.cache_text:
            return self.remembered_states(class_names)
        if self.switches.encode_class_once:
            different = list(dict.fromkeys(class_names))
            return self.encode_states(different)[[different.index(name) for name in class_names]]
        return self.encode_states(class_names)

    def encode_states(self, class_names: list[str]) -> Tensor:
        ids = [self.sentence_ids(name) for name in class_names]
        means = []
        for state in (0, 1):
            group = torch.stack([both[state] for both in ids])
            encoded = self.visual_encoder.text(group.flatten(0, 1))
            means.append(normalize(encoded.reshape(*group.shape[:2], -1).mean(dim=1), dim=-1))
        return torch.stack(means, dim=1)

    def remembered_states(self, class_names: list[str]) -> Tensor:
        """The same, with each class encoded only once in the run."""
        unknown = [name for name in dict.fromkeys(class_names) if name not in self.class_states]
        if unknown:
            with torch.no_grad():
                self.class_states |= zip(unknown, self.encode_states(unknown), strict=True)
        return torch.stack([self.class_states[name] for name in class_names])

    def sentence_ids(self, class_name: str) -> tuple[Tensor, Tensor]:
        """Token ids of the normal and the abnormal sentences, 14 x 77 and 10 x 77; tokenised once per class."""
        if class_name not in self.class_ids:
            device = self.llama_proj.weight.device
            normal, abnormal = (
                torch.tensor([self.sentence_tokenizer.encode(sentence) for sentence in sentences], device=device)
                for sentences in class_sentences(class_name)
            )
            self.class_ids[class_name] = (normal, abnormal)
        return self.class_ids[class_name]

    def with_memory_bank(self, anomaly_map: Tensor, images: Tensor, tapped: list[Tensor], paths: list[Path]) -> Tensor:
        """The map, replaced by the distance from a normal image where the coin says so.

        In the original for all images or none, so that some micro-steps encode nine images per image and others one.
        """
        coin = random.random() < BANK_PROBABILITY
        if not self.switches.steady_bank:
            return self.distance(images, tapped, paths) if coin else anomaly_map
        half = slice(int(coin), None, 2)
        replaced = anomaly_map.clone()
        replaced[half] = self.distance(images[half], [tokens[:, half] for tokens in tapped], paths[half])
        return replaced

    def distance(self, images: Tensor, tapped: list[Tensor], paths: list[Path]) -> Tensor:
        with agprof.range("memory_bank"), torch.no_grad():
            query = tapped if self.switches.reuse_taps else None
            return self.distance_from_normal(images, paths, query).float()

    def distance_from_normal(self, images: Tensor, paths: list[Path], query: list[Tensor] | None = None) -> Tensor:
        """B x 224 x 224: one minus the best cosine similarity to a patch of a normal image of the same class.

        The bank is the class's first training image at four quarter turns. Without ``query``, the images' taps, they
        are encoded a second time, as in the original.
        """
        bank = self.remembered_bank(paths) if self.switches.cache_bank else self.encode_bank(paths)
        if not self.switches.quiet:
            print("normal_paths:", [str(normal_example(path)) for path in paths])
        if query is None:
            _, query = self.visual_encoder.vision(images)
        similarities = []
        for rows, query_layer in zip(bank, query, strict=True):
            patches = query_layer[1:].transpose(0, 1)
            cosines = normalize(patches, dim=-1) @ normalize(rows, dim=-1).transpose(1, 2)
            similarities.append(cosines.amax(dim=2))
        grid = torch.stack(similarities).mean(dim=0).reshape(-1, 1, GRID_SIDE, GRID_SIDE)
        return 1 - enlarged(grid).squeeze(1)

    def encode_bank(self, paths: list[Path]) -> list[Tensor]:
        """Per tap B x 1024 x width: the patches of each path's normal example at four quarter turns."""
        weight = self.llama_proj.weight
        turns = torch.stack([turn for path in paths for turn in quarter_turns(normal_image(path))])
        _, bank = self.visual_encoder.vision(turns.to(weight.device, weight.dtype))
        # 257 x 4B x width -> B x 1024 x width
        return [layer[1:].transpose(0, 1).reshape(len(paths), -1, layer.shape[-1]) for layer in bank]

    def remembered_bank(self, paths: list[Path]) -> list[Tensor]:
        """The same, with each normal example encoded only once in the run."""
        examples = [normal_example(path) for path in paths]
        for path, example in zip(paths, examples, strict=True):
            if example not in self.banks:
                self.banks[example] = self.encode_bank([path])
        return [torch.cat(layers) for layers in zip(*(self.banks[example] for example in examples), strict=True)]

    def sequence(self, image: Tensor, prompts: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor, int]:
        """Embeddings, attention mask, labels and number of real tokens of the sequences that the language model reads.

        Each is: begin, marker, image, marker, 18 prompt tokens, conversation.
        """
        device, count = image.device, len(image)
        texts = [encode_conversation(talk, self.tokenizer, self.longest_text) for talk in batch.conversations]
        ids, text_labels, text_mask = (
            torch.tensor(rows, device=device) for rows in pad_right(texts, self.tokenizer.pad)
        )
        before = torch.tensor([self.tokenizer.bos, *self.tokenizer.encode(BEFORE_IMAGE)], device=device)
        after = torch.tensor(self.tokenizer.encode(AFTER_IMAGE), device=device)
        embed = self.llama_model.get_input_embeddings()
        embeddings = torch.cat(
            [
                embed(before.expand(count, -1)),
                image.unsqueeze(1),
                embed(after.expand(count, -1)),
                prompts,
                embed(ids),
            ],
            dim=1,
        )
        lead = embeddings.shape[1] - ids.shape[1]
        mask = torch.cat([text_mask.new_ones(count, lead), text_mask], dim=1)
        labels = torch.cat([text_labels.new_full((count, lead), IGNORED), text_labels], dim=1)
        # counted on the host: asking the mask would make the host wait for the device
        return embeddings, mask, labels, count * lead + sum(len(text.ids) for text in texts)


def anomaly_maps(features: Tensor, states: Tensor) -> Tensor:
    """B x 256 x shared patches, B x 2 x shared states -> B x 2 x 224 x 224 probabilities of normal and abnormal.

    From here on in float32, in which the losses' 1e-5 is no subnormal number.
    """
    logits = SIMILARITY_SCALE * normalize(features, dim=-1) @ states.transpose(1, 2)
    grid = logits.transpose(1, 2).reshape(-1, 2, GRID_SIDE, GRID_SIDE)
    return enlarged(grid.float()).softmax(dim=1)


def enlarged(grid: Tensor) -> Tensor:
    return interpolate(grid, size=(IMAGE_SIDE, IMAGE_SIDE), mode="bilinear", align_corners=True)


def normal_example(path: Path) -> Path:
    """The first image in the folder that this training image comes from."""
    return min(path.parent.glob("*.png"))


def normal_image(path: Path) -> Tensor:
    return normalised(read_cropped(normal_example(path)))


def quarter_turns(image: Tensor) -> list[Tensor]:
    return [torch.rot90(image, turns, dims=(1, 2)) for turns in range(QUARTER_TURNS)]


def guessed_tokens(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """How many of the learned tokens would be guessed right, and how many there are.

    As in the original, the first one is not looked at.
    """
    guessed, wanted = logits.argmax(dim=-1)[:, 1:-1], labels[:, 2:]
    counted = wanted != IGNORED
    return ((guessed == wanted) & counted).sum(), counted.sum()


def print_samples(batch: Batch) -> None:
    """A line per sample, from every rank, as the original leaves them in."""
    for name, conversation in zip(batch.class_names, batch.conversations, strict=True):
        print("texts:", name, [turn["value"] for turn in conversation])


def random_llama(size: Size) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=size.llm_width,
        intermediate_size=size.llm_mlp_width,
        num_hidden_layers=size.llm_blocks,
        num_attention_heads=size.llm_heads,
        num_key_value_heads=size.llm_heads,
        vocab_size=size.llm_vocabulary,
        rms_norm_eps=1e-6,
        max_position_embeddings=LLM_CONTEXT,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    return cast(nn.Module, LlamaForCausalLM(config))


def with_lora(llm: nn.Module, rank: int) -> Any:
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=rank,
        lora_alpha=rank,
        lora_dropout=LORA_DROPOUT,
        target_modules=list(LORA_TARGETS),
    )
    with warnings.catch_warnings():
        # peft asks transformers for an attribute by its old name
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return get_peft_model(llm, config)


def choose_trainable(model: nn.Module, parts: Sequence[str]) -> None:
    """Freeze everything but these parts. ``decoder`` and ``prompt`` are what the original trains."""
    unknown = sorted(set(parts) - set(TRAINABLE_PARTS))
    if unknown:
        raise ValueError(f"--train: unknown part {unknown[0]!r}; choose from {', '.join(TRAINABLE_PARTS)}, joined by +")
    chosen = tuple(TRAINABLE_PARTS[part] for part in parts)
    for name, parameter in model.named_parameters():
        in_llm = name.startswith("llama_model.")
        parameter.requires_grad_(any(key in name if in_llm else name.startswith(key) for key in chosen))
