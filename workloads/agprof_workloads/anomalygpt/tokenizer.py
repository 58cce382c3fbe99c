"""Tokenizers: hashing ones that need no file for random weights, and the real ones from the user's paths."""

import gzip
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from agprof_workloads.anomalygpt.sizes import TEXT_CONTEXT

LONGEST_PIECE = 6
"""A hashed word is cut into pieces of this many letters, which gives about as many tokens as a trained vocabulary."""
CLIP_MERGES = 48_894


class Tokenizer(Protocol):
    """What the language model's side needs of a tokenizer."""

    @property
    def bos(self) -> int: ...

    @property
    def pad(self) -> int: ...

    def encode(self, text: str) -> list[int]:
        """Ids without begin or end markers."""


class SentenceTokenizer(Protocol):
    """What the text tower needs: exactly 77 ids a sentence, of which the end marker is the highest."""

    def encode(self, text: str) -> list[int]: ...


def pieces(text: str) -> list[str]:
    words = re.findall(r"\w+|[^\w\s]|\n", text)
    return [word[i : i + LONGEST_PIECE] for word in words for i in range(0, len(word), LONGEST_PIECE)]


@dataclass(frozen=True, slots=True)
class HashTokenizer:
    """Words hashed into a vocabulary. Cannot decode: it feeds training with random weights, nothing else."""

    vocabulary: int
    bos: int = 1
    pad: int = 2

    def encode(self, text: str) -> list[int]:
        return [3 + zlib.crc32(piece.encode()) % (self.vocabulary - 3) for piece in pieces(text)]


@dataclass(frozen=True, slots=True)
class HashSentenceTokenizer:
    """The same for the text tower; the two highest ids mark beginning and end."""

    vocabulary: int

    def encode(self, text: str) -> list[int]:
        start, end = self.vocabulary - 2, self.vocabulary - 1
        ids = [1 + zlib.crc32(piece.encode()) % (self.vocabulary - 3) for piece in pieces(text.lower())]
        return fit([start, *ids, end], end)


class ClipTokenizer:
    """CLIP's byte-pair tokenizer from its ``bpe_simple_vocab_16e6.txt.gz``."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

        lines = gzip.decompress(path.read_bytes()).decode().split("\n")[1 : CLIP_MERGES + 1]
        merges = [(left, right) for left, right in (line.split() for line in lines)]
        symbols = clip_byte_symbols()
        words = [*symbols, *(s + "</w>" for s in symbols), *(a + b for a, b in merges)]
        vocabulary = {word: index for index, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
        self.start, self.end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
        self.bpe: Any = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>"))
        self.bpe.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        words_and_marks = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")
        self.bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(words_and_marks, behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        self.bpe.decoder = decoders.ByteLevel()

    def encode(self, text: str) -> list[int]:
        return fit([self.start, *self.bpe.encode(text).ids, self.end], self.end)


class LlamaTokenizer:
    """The tokenizer in a LLaMA or Vicuna folder; padded with the end marker, as the original does."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self.inner: Any = AutoTokenizer.from_pretrained(folder, use_fast=False)
        self.bos: int = self.inner.bos_token_id
        self.pad: int = self.inner.eos_token_id

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.inner(text, add_special_tokens=False).input_ids
        return ids


def fit(ids: list[int], end: int) -> list[int]:
    """Pad with zeros to the text tower's context, or cut to it and keep the end marker."""
    if len(ids) > TEXT_CONTEXT:
        return [*ids[: TEXT_CONTEXT - 1], end]
    return ids + [0] * (TEXT_CONTEXT - len(ids))


def clip_byte_symbols() -> list[str]:
    """One printable character per byte, in the order that CLIP numbers them."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
