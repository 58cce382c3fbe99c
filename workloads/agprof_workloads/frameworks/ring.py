"""All-reduce by hand, three ways, from `isend` and `irecv`, with everything that is sent counted.

Per all-reduce of n elements on p ranks:

| algorithm | messages in total | elements in total | elements that the busiest rank sends |
| naive: everybody sends everything to everybody | p (p-1) | p (p-1) n | (p-1) n |
| driver: rank 0 collects, adds up, sends back | 2 (p-1) | 2 (p-1) n | (p-1) n |
| ring: reduce-scatter, then all-gather | 2 p (p-1) | 2 (p-1) n | 2 (p-1) n / p |

At p = n = 4 that is 48, 24 and 24 elements in total, and 6 per rank for the ring: the often quoted 48 / 24 / 6 sets two
totals beside a figure per rank. The ring sends no less than the driver; it sends it from everywhere at once.

    torchrun --nproc-per-node 4 -m agprof_workloads.frameworks.ring
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(slots=True)
class Traffic:
    """What this rank has sent."""

    reductions: int = 0
    messages: int = 0
    elements: int = 0
    bytes: int = 0

    def send(self, tensor: Tensor, to: int) -> dist.Work | None:
        """Start sending; the tensor must stay as it is until the work is waited for."""
        self.messages += 1
        self.elements += tensor.numel()
        self.bytes += tensor.numel() * tensor.element_size()
        return dist.isend(tensor, to)


Algorithm = Callable[[Tensor, Traffic], None]


def ring(tensor: Tensor, traffic: Traffic) -> None:
    """Sum the one-dimensional `tensor` over all ranks, in place.

    Parts travel round the ring twice: p-1 times to be added to, p-1 times to be copied. A rank sends one part at a time
    to its right neighbour while it receives another from its left.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    right, left = (rank + 1) % ranks, (rank - 1) % ranks
    parts = tensor.tensor_split(ranks)  # views; sizes differ by one where ranks do not divide the length
    traffic.reductions += 1
    for turn in range(2 * (ranks - 1)):
        adding = turn < ranks - 1
        outgoing = parts[(rank - turn + (0 if adding else ranks)) % ranks]
        place = parts[(rank - turn - 1) % ranks]
        incoming = torch.empty_like(place)
        finish([traffic.send(outgoing, right), dist.irecv(incoming, left)])
        if adding:
            place += incoming
        else:
            place.copy_(incoming)


def naive(tensor: Tensor, traffic: Traffic) -> None:
    """Sum `tensor` over all ranks, in place: everybody sends everything to everybody."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    others = [other for other in range(ranks) if other != rank]
    received = {other: torch.empty_like(tensor) for other in others}
    own = tensor.clone()
    traffic.reductions += 1
    finish([*(traffic.send(own, other) for other in others), *(dist.irecv(received[o], o) for o in others)])
    # in the order of the ranks on each of them, or rounding would leave them with different sums
    tensor.zero_()
    for number in range(ranks):
        tensor += own if number == rank else received[number]


def driver(tensor: Tensor, traffic: Traffic) -> None:
    """Sum `tensor` over all ranks, in place: rank 0 collects, adds up and sends back."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    traffic.reductions += 1
    if rank:
        finish([traffic.send(tensor.clone(), 0)])
        finish([dist.irecv(tensor, 0)])
        return
    received = [torch.empty_like(tensor) for _ in range(1, ranks)]
    finish([dist.irecv(part, other) for other, part in enumerate(received, start=1)])
    for part in received:
        tensor += part
    finish([traffic.send(tensor, other) for other in range(1, ranks)])


ALGORITHMS: dict[str, Algorithm] = {"ring": ring, "naive": naive, "driver": driver}


def finish(works: Sequence[dist.Work | None]) -> None:
    for work in works:
        if work is not None:
            work.wait()


def hook(
    state: tuple[Algorithm, Traffic],
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[Tensor]:
    """A communication hook of DDP: the bucket's mean over the ranks. It is not asynchronous: backward waits for it."""
    algorithm, traffic = state
    gradients = bucket.buffer()
    gradients /= dist.get_world_size()
    algorithm(gradients, traffic)
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(gradients)
    return done


def counted(name: str, tensor: Tensor) -> dict[str, object]:
    """Reduce `tensor` in place; what every rank sent, and how far the result is from `all_reduce`'s."""
    expected, traffic = tensor.clone(), Traffic()
    dist.all_reduce(expected)
    ALGORITHMS[name](tensor, traffic)
    difference = (tensor.double() - expected.double()).abs().max() if tensor.numel() else torch.zeros(())
    counts = gathered(traffic)
    return {
        "algorithm": name,
        "messages per rank": [count["messages"] for count in counts],
        "elements per rank": [count["elements"] for count in counts],
        "messages in total": sum(count["messages"] for count in counts),
        "elements in total": sum(count["elements"] for count in counts),
        "largest difference from all_reduce": float(difference),
    }


def gathered(traffic: Traffic) -> list[dict[str, int]]:
    """Every rank's counts, by rank."""
    counts: list[dict[str, int]] = [{}] * dist.get_world_size()
    dist.all_gather_object(counts, asdict(traffic))
    return counts


def told(name: str, traffic: Traffic) -> str:
    """One line on a whole run; all ranks must call it."""
    counts = gathered(traffic)
    total = {key: sum(count[key] for count in counts) for key in counts[0]}
    busiest = max(counts, key=lambda count: count["bytes"])
    return (
        f"all-reduce by {name}, {traffic.reductions} times: {total['messages']:,} messages, {total['elements']:,} "
        f"elements, {total['bytes']:,} bytes sent in total; the busiest rank sent {busiest['messages']:,} messages, "
        f"{busiest['elements']:,} elements, {busiest['bytes']:,} bytes"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Count what three ways to all-reduce send.", allow_abbrev=False)
    parser.add_argument("--elements", type=int, nargs="+", default=[4])
    parser.add_argument("--dtype", choices=("int64", "float32", "float64"), nargs="+", default=["int64"])
    options = parser.parse_args()
    dist.init_process_group("gloo")
    generator = torch.Generator().manual_seed(dist.get_rank())
    for elements, dtype, name in product(options.elements, options.dtype, ALGORITHMS):
        numbers = torch.rand(elements, generator=generator, dtype=torch.float64) * 2000 - 1000
        line = counted(name, numbers.to(getattr(torch, dtype)))
        if dist.get_rank() == 0:
            print(json.dumps({"elements": elements, "dtype": dtype, **line}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
