"""`--sweep` as variants."""

import pytest

from agprof.config.sweep import MAX_VARIANTS, Variant, variants
from agprof.errors import ConfigError


def test_one_key() -> None:
    keys, found = variants(["framework=ddp,fsdp2"])
    assert keys == ("args.framework",)
    assert [variant.sets for variant in found] == [("args.framework=ddp",), ("args.framework=fsdp2",)]


def test_several_keys_make_every_combination() -> None:
    keys, found = variants(["peft=lora,ia3", "launch.ranks_per_node=1,2,3"])
    assert keys == ("args.peft", "launch.ranks_per_node")
    assert [variant.values for variant in found] == [
        (method, ranks) for method in ("lora", "ia3") for ranks in ("1", "2", "3")
    ]
    assert found[-1].sets == ("args.peft=ia3", "launch.ranks_per_node=3")


def test_labels_tell_folders_apart() -> None:
    assert Variant(values=("lora", "5e-5"), sets=()).label == "lora-5e-5"
    assert Variant(values=("../x",), sets=()).label == "x"
    assert Variant(values=("''",), sets=()).label == "empty"


@pytest.mark.parametrize(
    ("sweeps", "rule"),
    [
        (["framework"], "must be key=value,value"),
        (["=ddp"], "must be key=value,value"),
        (["framework="], "must be key=value,value"),
        (["framework=ddp,,fsdp2"], "must be key=value,value"),
        (["framework=ddp,ddp"], "has a value twice"),
        (["framework=ddp", "args.framework=fsdp2"], "is swept twice"),
        (["name=a,b"], "is made for each variant"),
        (["a=" + ",".join(map(str, range(MAX_VARIANTS + 1)))], f"more than {MAX_VARIANTS} runs"),
        (["a=" + ",".join(map(str, range(1000))), "b=" + ",".join(map(str, range(1000)))], "leave values out"),
    ],
)
def test_a_bad_sweep_is_one_message(sweeps: list[str], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule) as caught:
        variants(sweeps)
    assert "--sweep" in str(caught.value)
    assert "\n" not in str(caught.value)
