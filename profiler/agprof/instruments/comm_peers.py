"""Who is at the other end of a call: the peer of point-to-point, the root of a rooted collective, as global ranks."""

from dataclasses import dataclass
from typing import Any

from agprof.instruments.comm_groups import Group
from agprof.instruments.comm_ops import is_sending


@dataclass(frozen=True, slots=True)
class PeerArgument:
    """Where a function of torch.distributed has the other end among its arguments."""

    name: str
    """`src` or `dst`, a global rank; `group_` before it: the rank within the group."""
    position: int
    group_position: int
    default: int | None
    """Global rank when neither is given."""

    def find(self, args: tuple[Any, ...], kwargs: dict[str, Any], group: Group) -> int | None:
        """Global rank; None where it is not told, as of a recv from anybody."""
        told = args[self.position] if len(args) > self.position else kwargs.get(self.name)
        if told is not None:
            return int(told)
        within = args[self.group_position] if len(args) > self.group_position else kwargs.get(f"group_{self.name}")
        if within is None:
            return self.default
        return group.ranks[within] if within < len(group.ranks) else None


PEERS: dict[str, PeerArgument] = {
    "broadcast": PeerArgument("src", 1, 4, None),
    "reduce": PeerArgument("dst", 1, 5, None),
    "gather": PeerArgument("dst", 2, 5, 0),
    "scatter": PeerArgument("src", 2, 5, 0),
    "send": PeerArgument("dst", 1, 4, None),
    "recv": PeerArgument("src", 1, 4, None),
    "broadcast_object": PeerArgument("src", 1, 4, 0),
    "gather_object": PeerArgument("dst", 2, 4, 0),
    "scatter_object": PeerArgument("src", 2, 4, 0),
    "send_object": PeerArgument("dst", 1, 4, 0),
    "recv_object": PeerArgument("src", 1, 4, None),
}
"""By kind of operation."""


def peers(kind: str, args: tuple[Any, ...], kwargs: dict[str, Any], group: Group) -> str | None:
    """The column `peers` of a call."""
    argument = PEERS.get(kind)
    if argument is not None:
        found = argument.find(args, kwargs, group)
        return None if found is None else str(found)
    if kind == "send_recv":
        operations = args[0] if args else kwargs["p2p_op_list"]
        return ",".join(f"{'>' if is_sending(op) else '<'}{op.peer}:{op.tensor.nbytes}" for op in operations)
    return None
