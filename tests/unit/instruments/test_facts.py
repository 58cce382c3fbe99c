"""Facts that utilisation is made of: TF32, the model's config and its embedding tables."""

import json
import subprocess
import sys

import torch
import transformers
from rank_streams import faults


def model_facts(arm, model, *inputs):
    rig = arm()
    model(*inputs)
    tables = rig.finish()
    assert not faults(tables)
    return {row.key: json.loads(row.value) for row in tables["facts"]}


def gpt2(**changes):
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 50, "n_positions": 32, "use_cache": False}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes | changes))


IDS = torch.arange(8)[None]


def test_the_config_of_a_transformer_with_a_tied_head(arm):
    facts = model_facts(arm, gpt2(), IDS)
    assert facts["model.config"] == {"layers": 2, "heads": 2, "hidden": 16}
    assert facts["model.embedding_params"] == 32 * 16  # positions; the tokens' table is the head too


def test_a_table_that_is_no_head_is_only_looked_up(arm):
    facts = model_facts(arm, gpt2(tie_word_embeddings=False), IDS)
    assert facts["model.embedding_params"] == (32 + 50) * 16


def test_a_head_dimension_of_its_own(arm):
    config = transformers.LlamaConfig(
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, hidden_size=16, head_dim=32,
        intermediate_size=32, vocab_size=50, use_cache=False,
    )  # fmt: skip
    facts = model_facts(arm, transformers.LlamaForCausalLM(config), IDS)
    assert facts["model.config"] == {"layers": 1, "heads": 2, "hidden": 16, "head_dim": 32}


def test_a_model_without_config_says_nothing_of_one(arm):
    class Model(torch.nn.Linear):
        config = {"num_hidden_layers": 2}  # noqa: RUF012

    facts = model_facts(arm, Model(4, 1), torch.ones(1, 4))
    assert "model.config" not in facts
    assert facts["model.embedding_params"] == 0


SETTINGS = {
    "": (False, True),
    "torch.backends.cuda.matmul.allow_tf32 = True": (True, True),
    "torch.set_float32_matmul_precision('high')": (True, True),
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'": (True, True),
    "torch.backends.cudnn.allow_tf32 = False": (False, False),
    "torch.backends.cudnn.conv.fp32_precision = 'ieee'; torch.backends.cudnn.rnn.fp32_precision = 'tf32'": (
        False,
        False,
    ),
}


def test_tf32_is_read_however_it_was_set_and_without_a_device():
    # Each in turn in a process of its own: torch keeps which of its two interfaces was used.
    code = """
import os, sys, torch
from agprof.instruments.facts import _allows_tf32
for line in sys.stdin.read().splitlines():
    if os.fork() == 0:
        exec(line)
        print(_allows_tf32(torch.backends.cuda.matmul, torch), _allows_tf32(torch.backends.cudnn, torch),
              torch.cuda.is_initialized(), flush=True)
        os._exit(0)
    os.wait()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], input="\n".join(SETTINGS) + "\n", text=True, check=True, capture_output=True
    )
    found = [line.split() for line in done.stdout.splitlines()]
    assert found == [[str(matmul), str(conv), "False"] for matmul, conv in SETTINGS.values()]
