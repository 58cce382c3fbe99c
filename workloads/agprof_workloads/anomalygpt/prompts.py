"""All text: the states of an object, the question and answer about it, and the sequence that the LLM reads.

The role markers, templates and state phrases are those that the released weights were trained with. The class
descriptions are our own wording; a JSON file ``{class: description}`` brings any other.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from agprof_workloads.anomalygpt.tokenizer import Tokenizer

NORMAL_STATES = (
    "{}",
    "flawless {}",
    "perfect {}",
    "unblemished {}",
    "{} without flaw",
    "{} without defect",
    "{} without damage",
)
ABNORMAL_STATES = ("damaged {}", "broken {}", "{} with flaw", "{} with defect", "{} with damage")
TEMPLATES = ("a photo of a {}.", "a photo of the {}.")

BEFORE_IMAGE = "### Human: <Img>"
AFTER_IMAGE = "</Img> "
AFTER_QUESTION = "\n### Assistant:"
AFTER_ANSWER = "\n###"
LATER_QUESTION = "Human: "

IGNORED = -100
"""The label that cross-entropy leaves out."""

ANY_OBJECT = "object"
QUESTION = "Is there any anomaly in the image?"
NO = "No, there is no anomaly in the image."

DESCRIPTIONS = {
    # MVTec-AD
    "bottle": "A bottle seen from above; its rim is a closed circle and its inside is clean and evenly dark.",
    "cable": "The cut end of a cable; three insulated wires of different colour lie in one round sheath.",
    "capsule": "A two-coloured capsule with a legible imprint; its shell is smooth and closed.",
    "carpet": "Woven carpet; the weave repeats evenly and has one colour.",
    "grid": "A metal grid; the wires cross at equal distances and are straight.",
    "hazelnut": "A hazelnut; the shell is closed, brown and evenly grained.",
    "leather": "Brown leather; the grain is fine and the surface is even.",
    "metal_nut": "A metal nut with four wings; edges and colour are even all round.",
    "pill": "An oval white pill with reddish specks and a clear imprint.",
    "screw": "A metal screw; the thread is regular and the tip is pointed.",
    "tile": "Speckled tile; the grey pattern is irregular but of even density.",
    "toothbrush": "The head of a toothbrush; the bristles stand upright in complete tufts.",
    "transistor": "A transistor on a perforated board; its three legs sit in their holes.",
    "wood": "Planed wood; the grain runs in one direction and the colour is warm and even.",
    "zipper": "A closed zipper; teeth interlock evenly and the fabric lies flat.",
    # VisA
    "candle": "Four candles; each is round, white and has its wick in the middle.",
    "capsules": "Several translucent green capsules; each is full and closed.",
    "cashew": "A cashew; curved, pale and whole.",
    "chewinggum": "A piece of chewing gum; white, with rounded corners.",
    "fryum": "A fried snack shaped as a wheel; its spokes are complete.",
    "macaroni1": "Four short macaroni; curved, yellow and of one size.",
    "macaroni2": "Four short macaroni; curved, yellow and of one size.",
    "pcb1": "A circuit board; parts are soldered straight and the traces are whole.",
    "pcb2": "A circuit board; parts are soldered straight and the traces are whole.",
    "pcb3": "A circuit board; parts are soldered straight and the traces are whole.",
    "pcb4": "A circuit board; parts are soldered straight and the traces are whole.",
    "pipe_fryum": "A fried snack shaped as a tube; its wall is closed.",
    # the miniature
    "brick": "A brick wall; rows of bricks are level and the joints have one width.",
    "grass": "A lawn; the blades are dense and evenly mixed.",
    "gravel": "Gravel; stones of similar size lie densely.",
    "coffee": "A cup of coffee on a saucer; cup, spoon and coffee are whole and clean.",
    "coins": "Rows of old coins; each is round and apart from the others.",
    "motorcycle": "A motorcycle; its parts are complete and in their places.",
    ANY_OBJECT: "An object of any kind.",
}


class Turn(TypedDict):
    """One utterance of a conversation; ``speaker`` is ``human`` or ``gpt``."""

    speaker: str
    value: str


Conversation = list[Turn]


def class_sentences(class_name: str) -> tuple[list[str], list[str]]:
    """The 14 normal and 10 abnormal sentences about one class."""
    name = class_name.replace("_", " ")
    normal = [template.format(state.format(name)) for state in NORMAL_STATES for template in TEMPLATES]
    abnormal = [template.format(state.format(name)) for state in ABNORMAL_STATES for template in TEMPLATES]
    return normal, abnormal


def read_descriptions(path: Path | None) -> dict[str, str]:
    """Ours, with the user's on top."""
    if path is None:
        return DESCRIPTIONS
    own = json.loads(path.read_text())
    if not isinstance(own, dict) or not all(isinstance(text, str) for text in own.values()):
        raise ValueError(f"{path}: class descriptions must be a JSON object of strings, {{class: description}}")
    return DESCRIPTIONS | own


def inspection(class_name: str, places: list[str], descriptions: dict[str, str]) -> Conversation:
    """The question about an image of a class, and the answer when it has anomalies at these places."""
    description = descriptions.get(class_name, f"A {class_name.replace('_', ' ')}.")
    return [
        Turn(speaker="human", value=f"{description} {QUESTION}"),
        Turn(speaker="gpt", value=verdict(places)),
    ]


def verdict(places: list[str]) -> str:
    if not places:
        return NO
    if len(places) == 1:
        return f"Yes, there is an anomaly in the image, at the {places[0]} of the image."
    return (
        f"Yes, there are {len(places)} anomalies in the image, "
        + " and ".join(f"at the {place} of the image" for place in places)
        + "."
    )


@dataclass(frozen=True, slots=True)
class EncodedText:
    """The text behind the image and prompt tokens. Ids and labels have one length; asked tokens carry no label."""

    ids: list[int]
    labels: list[int]


def encode_conversation(conversation: Conversation, tokenizer: Tokenizer, longest: int) -> EncodedText:
    """Question, marker, answer, marker. Only what the assistant says is learned; cut at ``longest`` tokens."""
    ids: list[int] = []
    labels: list[int] = []
    for index, turn in enumerate(conversation):
        if turn["speaker"] == "human":
            asked = tokenizer.encode(("" if index == 0 else LATER_QUESTION) + turn["value"] + AFTER_QUESTION)
            ids += asked
            labels += [IGNORED] * len(asked)
        else:
            answered = tokenizer.encode(turn["value"] + AFTER_ANSWER)
            ids += answered
            labels += answered
    return EncodedText(ids[:longest], labels[:longest])


def pad_right(texts: Iterable[EncodedText], pad: int) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """Ids, labels and attention mask, all rows as long as the longest."""
    rows = list(texts)
    longest = max(len(row.ids) for row in rows)
    short = [longest - len(row.ids) for row in rows]
    return (
        [row.ids + [pad] * n for row, n in zip(rows, short, strict=True)],
        [row.labels + [IGNORED] * n for row, n in zip(rows, short, strict=True)],
        [[1] * len(row.ids) + [0] * n for row, n in zip(rows, short, strict=True)],
    )
