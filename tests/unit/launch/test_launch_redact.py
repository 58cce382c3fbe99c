"""No secret is written, and nothing else is hidden."""

import pytest

from agprof.launch.redact import REDACTED, names_a_secret, redact_argv, redact_text, redact_tree


@pytest.mark.parametrize(
    "name",
    ["--token", "HF_TOKEN", "hub_token", "WANDB_API_KEY", "api-key", "apikey", "AWS_SECRET_ACCESS_KEY", "db.password",
     "accessKey", "client_secret", "PASSWORD"],
)  # fmt: skip
def test_names_of_secrets(name):
    assert names_a_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        "pad_token",
        "eos-token",
        "max_tokens",
        "tokenizer",
        "tokens_per_step",
        "key",
        "monkey",
        "sort_key",
        "",
        "secretary",
    ],
)
def test_names_of_no_secrets(name):
    assert not names_a_secret(name)


@pytest.mark.parametrize(
    "secret",
    ["hf_" + "a" * 34, "ghp_" + "A1" * 18, "sk-" + "x" * 40, "AKIA" + "B" * 16, "glpat-" + "c" * 20,
     "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl"],
)  # fmt: skip
def test_secrets_in_text(secret):
    assert secret not in redact_text(f"key is {secret}!")


def test_credentials_in_an_address():
    assert redact_text("https://me:pass@host/x") == f"https://{REDACTED}@host/x"


@pytest.mark.parametrize("text", ["/data/hf_models/llama", "sk-learn", "epoch=3", "https://host/x", "tokenizer.json"])
def test_plain_text_stays(text):
    assert redact_text(text) == text


def test_argv():
    argv = ["run", "--token", "s3", "--lr", "1", "--api_key=s4", "--token", "--fast", "x"]
    assert redact_argv(argv) == [
        "run",
        "--token",
        REDACTED,
        "--lr",
        "1",
        f"--api_key={REDACTED}",
        "--token",
        "--fast",
        "x",
    ]


def test_tree():
    tree = {"args": {"hf_token": "x", "lr": 0.1, "names": ["a", "b"]}, "list": ["--token", "y"], "none": None}
    assert redact_tree(tree) == {
        "args": {"hf_token": REDACTED, "lr": 0.1, "names": ["a", "b"]},
        "list": ["--token", REDACTED],
        "none": None,
    }
