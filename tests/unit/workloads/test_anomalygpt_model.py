"""What the forward pass is made of, at the tiny size."""

from pathlib import Path

import pytest
import torch

from agprof_workloads.anomalygpt.data import Batch
from agprof_workloads.anomalygpt.model import AnomalyGPT, anomaly_maps, choose_trainable, guessed_tokens
from agprof_workloads.anomalygpt.prompts import IGNORED, inspection
from agprof_workloads.anomalygpt.sizes import TINY
from agprof_workloads.anomalygpt.tokenizer import HashSentenceTokenizer, HashTokenizer


@pytest.fixture(scope="module")
def model() -> AnomalyGPT:
    torch.manual_seed(0)
    return AnomalyGPT(TINY, HashSentenceTokenizer(512), HashTokenizer(512), longest_text=40).eval()


def a_batch(*, masks: bool) -> Batch:
    return Batch(
        images=torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1)),
        class_names=["brick", "metal_nut"],
        conversations=[inspection("brick", [], {}), inspection("metal_nut", ["top left"], {})],
        masks=torch.zeros(2, 224, 224) if masks else None,
        paths=None,
    )


def test_sequence_layout_and_labels(model: AnomalyGPT) -> None:
    batch, tokenizer = a_batch(masks=True), model.tokenizer
    embeddings, mask, labels, tokens = model.sequence(torch.full((2, 64), 7.0), torch.full((2, 18, 64), 9.0), batch)
    before = [tokenizer.bos, *tokenizer.encode("### Human: <Img>")]
    after = tokenizer.encode("</Img> ")
    image_at = len(before)
    prompts_at = image_at + 1 + len(after)
    text_at = prompts_at + 18
    embed = model.llama_model.get_input_embeddings()

    assert torch.equal(embeddings[0, :image_at], embed(torch.tensor(before)))
    assert torch.equal(embeddings[:, image_at], torch.full((2, 64), 7.0))
    assert torch.equal(embeddings[1, image_at + 1 : prompts_at], embed(torch.tensor(after)))
    assert torch.equal(embeddings[:, prompts_at:text_at], torch.full((2, 18, 64), 9.0))
    for row, (question, answer) in enumerate(
        [
            ("A brick. Is there any anomaly in the image?", "No, there is no anomaly in the image."),
            (
                "A metal nut. Is there any anomaly in the image?",
                "Yes, there is an anomaly in the image, at the top left of the image.",
            ),
        ]
    ):
        asked = tokenizer.encode(question + "\n### Assistant:")
        answered = tokenizer.encode(answer + "\n###")
        kept = (asked + answered)[:40]
        text = [*kept, *[tokenizer.pad] * (labels.shape[1] - text_at - len(kept))]
        wanted = ([IGNORED] * (text_at + len(asked)) + answered)[: text_at + 40]
        assert torch.equal(embeddings[row, text_at:], embed(torch.tensor(text)))
        assert labels[row].tolist() == wanted + [IGNORED] * (labels.shape[1] - len(wanted))
        assert mask[row].tolist() == [1] * (text_at + len(kept)) + [0] * (labels.shape[1] - text_at - len(kept))
    assert tokens == int(mask.sum())


def test_states_are_unit_vectors_per_image(model: AnomalyGPT) -> None:
    states = model.encode_states(["brick", "brick", "metal_nut"])
    assert states.shape == (3, 2, 32)
    assert torch.allclose(states.norm(dim=-1), torch.ones(3, 2), atol=1e-5)
    assert torch.allclose(states[0], states[1], atol=1e-6)
    normal, abnormal = model.sentence_ids("metal_nut")
    assert (normal.shape, abnormal.shape) == ((14, 77), (10, 77))


def test_remembered_states_are_the_same_without_the_text_tower(
    model: AnomalyGPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["brick", "brick", "metal_nut"]
    expected = model.encode_states(names)
    assert torch.allclose(model.remembered_states(names), expected, atol=1e-6)
    monkeypatch.setattr(model, "encode_states", None)
    assert torch.allclose(model.remembered_states(names[::-1]), expected.flip(0), atol=1e-6)


def test_text_tower_reads_up_to_the_end_marker_only(model: AnomalyGPT) -> None:
    ids = torch.tensor([HashSentenceTokenizer(512).encode("a photo of a brick.")])
    end = int(ids[0].argmax())
    behind = ids.clone()
    behind[0, end + 1 :] = 5
    assert torch.allclose(model.visual_encoder.text(ids), model.visual_encoder.text(behind), atol=1e-5)


def test_vision_tower_hands_out_four_taps(model: AnomalyGPT) -> None:
    embedding, tapped = model.visual_encoder.vision(a_batch(masks=False).images)
    assert embedding.shape == (2, 32)
    assert [tuple(tap.shape) for tap in tapped] == [(257, 2, 64)] * 4
    assert [tuple(f.shape) for f in model.image_decoder(tapped)] == [(2, 256, 32)] * 4


def test_anomaly_map_is_high_where_the_patch_is_like_the_abnormal_state() -> None:
    normal, abnormal = torch.eye(32)[0], torch.eye(32)[1]
    features = normal.repeat(1, 256, 1)
    features[0, 0] = abnormal
    maps = anomaly_maps(features, torch.stack([normal, abnormal]).unsqueeze(0))
    assert maps.shape == (1, 2, 224, 224)
    assert torch.allclose(maps.sum(dim=1), torch.ones(1, 224, 224))
    assert maps[0, 1, 0, 0] > 0.999
    assert maps[0, 1, -1, -1] < 0.001


def test_prompt_learner_gives_eighteen_tokens_and_free_ones_first(model: AnomalyGPT) -> None:
    tokens = model.prompt_learner(torch.rand(2, 1, 224, 224))
    assert tokens.shape == (2, 18, 64)
    assert torch.equal(tokens[0, :9], model.prompt_learner.base_prompts)


def test_losses_add_up_and_reach_exactly_what_is_trained(model: AnomalyGPT) -> None:
    choose_trainable(model, ["decoder", "prompt"])
    outcome = model(a_batch(masks=True))
    assert outcome.focal is not None and outcome.dice is not None
    assert torch.equal(outcome.loss, outcome.language + outcome.focal + outcome.dice)
    outcome.loss.backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad != (p.grad is not None)]
    assert missing == []
    model.zero_grad()


def test_instructions_have_no_pixel_loss(model: AnomalyGPT) -> None:
    outcome = model(a_batch(masks=False))
    assert outcome.focal is None and outcome.dice is None
    assert torch.equal(outcome.loss, outcome.language)


def test_bank_branch_measures_distance_from_the_first_normal_image(model: AnomalyGPT, miniature_root: Path) -> None:
    from agprof_workloads.anomalygpt.images import normalised, read_cropped

    folder = miniature_root / "mvtec" / "brick" / "train" / "good"
    images = torch.stack([normalised(read_cropped(folder / name)) for name in ("000.png", "003.png")])
    with torch.no_grad():
        distance = model.distance_from_normal(images, [folder / "005.png"] * 2)
    assert distance.shape == (2, 224, 224)
    # the bank holds 000.png itself, so each of its patches finds itself
    assert distance[0].abs().max() < 1e-4
    assert distance[1].max() > distance[0].max()


def test_guessed_tokens_skip_what_is_not_learned() -> None:
    labels = torch.tensor([[IGNORED, IGNORED, 3, 4, IGNORED]])
    logits = torch.zeros(1, 5, 6)
    logits[0, 1, 3] = 1
    logits[0, 2, 5] = 1
    assert [count.item() for count in guessed_tokens(logits, labels)] == [1, 2]
