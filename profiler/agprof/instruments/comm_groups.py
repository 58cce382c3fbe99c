"""Process groups as rows name them."""

import weakref
from collections.abc import Callable
from typing import Any

# What the flight recorder writes for an operation, where it is not the operation's own name; None: nothing at all.
# gloo makes an all-reduce of a reduce-scatter, and one for each chunk where the chunks come as a list.
_RECORDED_BY_GLOO: dict[str, str | None] = {
    "reduce_scatter": "all_reduce",
    "reduce_scatter_list": "all_reduce",
    "monitored_barrier": None,
    "send": None,
    "recv": None,
    "send_recv": None,
}
_RECORDED_BY_NCCL: dict[str, str | None] = {
    "reduce_scatter_list": "reduce_scatter",
    "monitored_barrier": None,
    "send_recv": None,
}


class Group:
    """Name, members and backend of a process group."""

    __slots__ = ("backend", "device_backend", "name", "ranks", "size")

    def __init__(self, name: str, ranks: tuple[int, ...], backends: dict[str, str]) -> None:
        """`ranks`: the members' global ranks, in the group's order; `backends`: backend by device type, as {"cpu":
        "gloo", "cuda": "nccl"}."""
        self.name = name
        self.ranks = ranks
        self.size = len(ranks)
        self.backend = backends.get("cuda") or next(iter(backends.values()), "")
        self.device_backend = backends

    def recorded_as(self, call: str, device: str | None) -> tuple[str, int] | None:
        """Under which name, and in how many entries, torch's flight recorder keeps a call; None where it does not."""
        backend = self.device_backend.get(device, self.backend) if device is not None else self.backend
        if backend == "gloo":
            name = _RECORDED_BY_GLOO.get(call, call)
            return None if name is None else (name, self.size if call == "reduce_scatter_list" else 1)
        if backend == "nccl":
            name = _RECORDED_BY_NCCL.get(call, call)
            return None if name is None else (name, 1)
        return None


class Groups:
    """Groups by torch's objects. It keeps none of them alive."""

    def __init__(self, distributed: Any, seen: Callable[[Group], None]) -> None:
        """`seen` is called once per group, when the first call on it is seen."""
        self._distributed = distributed
        self._seen = seen
        self.work_class: Any = distributed.Work
        self._default: Group | None = None
        self._known: dict[int, tuple[Any, Group]] = {}

    def get(self, group: Any) -> Group | None:
        """None for a group that this rank is not a member of."""
        if group is None:
            return self._default or self._describe_default()
        known = self._known.get(id(group))
        if known is not None and known[0]() is group:
            return known[1]
        return self._describe(group)

    def forget(self) -> None:
        """Call when groups were created or destroyed: the default group may be another one now."""
        self._default = None
        self._known.clear()

    def _describe_default(self) -> Group | None:
        world = self._distributed.GroupMember.WORLD
        self._default = self._describe(world) if world is not None else None
        return self._default

    def _describe(self, group: Any) -> Group | None:
        if isinstance(group, int):
            return None  # torch's mark for a group that this rank is not in
        distributed = self._distributed
        ranks = tuple(int(rank) for rank in distributed.get_process_group_ranks(group))
        name = label(str(group.group_name), str(group.group_desc))
        described = Group(name, ranks, _backends(str(distributed.get_backend_config(group))))
        self._known[id(group)] = (weakref.ref(group), described)
        self._seen(described)
        return described


def label(name: str, description: str) -> str:
    """A group's name in the tables, from torch's name (a number, as a rule) and its description."""
    if description == "default_pg":
        return "default"
    return name if description in {"", "undefined"} else f"{description} {name}"


def _backends(config: str) -> dict[str, str]:
    """`cpu:gloo,cuda:nccl` as a dictionary."""
    return {device: backend for device, _, backend in (part.partition(":") for part in config.split(","))}
