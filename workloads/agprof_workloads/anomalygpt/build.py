"""From options to a model in memory: which checkpoints it needs, which tokenizers, and which weights it starts from."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import nn

from agprof_workloads.anomalygpt import checkpoints
from agprof_workloads.anomalygpt.model import AnomalyGPT
from agprof_workloads.anomalygpt.sizes import SIZES
from agprof_workloads.anomalygpt.switches import chosen
from agprof_workloads.anomalygpt.tokenizer import (
    ClipTokenizer,
    HashSentenceTokenizer,
    HashTokenizer,
    LlamaTokenizer,
    SentenceTokenizer,
    Tokenizer,
)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CHECKPOINT_OPTIONS = {
    "imagebind": "ImageBind's imagebind_huge.pth",
    "llama": "the folder of Vicuna-7B v0 with config.json, weights and tokenizer.model",
    "pandagpt_delta": "PandaGPT's pytorch_model.pt",
    "clip_vocabulary": "CLIP's bpe_simple_vocab_16e6.txt.gz",
}


def check_checkpoints(options: argparse.Namespace) -> None:
    """Complain about the first path that is missing, before anything large is loaded."""
    given = [name for name in CHECKPOINT_OPTIONS if getattr(options, name)]
    if options.preset != "full" and given:
        raise ValueError(f"{flag(given[0])} belongs to --preset full; --preset {options.preset} has its own widths")
    if options.preset == "full" and not options.random_weights:
        for name, what in CHECKPOINT_OPTIONS.items():
            if getattr(options, name) is None:
                raise ValueError(
                    f"--preset full needs {flag(name)}: {what}; to run at full size without checkpoints, "
                    f"add --random-weights"
                )
    for name in [*given, "anomalygpt_delta"]:
        path: Path | None = getattr(options, name)
        if path is not None and not path.exists():
            what = CHECKPOINT_OPTIONS.get(name, "trained weights")
            raise ValueError(f"{flag(name)} {path}: no such file or folder; it should be {what}")


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def build_model(options: argparse.Namespace, device: torch.device, say: Callable[[str], None]) -> AnomalyGPT:
    size = SIZES[options.preset]
    sentence_tokenizer: SentenceTokenizer = HashSentenceTokenizer(size.text_vocabulary)
    if options.clip_vocabulary:
        sentence_tokenizer = ClipTokenizer(options.clip_vocabulary)
    tokenizer: Tokenizer = HashTokenizer(size.llm_vocabulary)
    if options.llama:
        tokenizer = LlamaTokenizer(options.llama)

    # on a GPU the model is made there and in its final precision: 8 billion float32 would not fit beside anything
    usual = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[options.dtype] if device.type != "cpu" else usual)
    try:
        with device:
            llm = read_llama(options.llama, torch.get_default_dtype()) if options.llama else None
            model = AnomalyGPT(
                size,
                sentence_tokenizer,
                tokenizer,
                llm=llm,
                longest_text=options.longest_text,
                switches=chosen(options),
                unused_towers=options.unused_towers,
            )
    finally:
        torch.set_default_dtype(usual)

    if options.imagebind:
        loaded = checkpoints.load_imagebind(model.visual_encoder, options.imagebind)
        say(f"ImageBind: {loaded.keys} weights loaded, towers left out: {', '.join(loaded.ignored) or 'none'}")
    for path in (options.pandagpt_delta, options.anomalygpt_delta):
        if path:
            loaded = checkpoints.load_delta(model, path)
            unknown = f", {len(loaded.ignored)} unknown keys left out" if loaded.ignored else ""
            say(f"{path.name}: {loaded.keys} weights loaded{unknown}")
    return model


def read_llama(folder: Path, dtype: torch.dtype) -> nn.Module:
    from transformers import LlamaForCausalLM

    return cast(nn.Module, LlamaForCausalLM.from_pretrained(folder, dtype=dtype))
