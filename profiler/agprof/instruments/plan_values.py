"""What a training loop asks of values, answered for tensors that have none.

Models and losses read values back: a loss for the log, whether a mask has any padding, a target by way of the host.
On the meta device each would fail. In a process of planning the answer is 1 (a truth value is then True, a mask
"all ones", a loss 1.0), and a tensor that is copied to the host stays where it is. How often was asked is told, since
what depends on an answer may run otherwise in training. Only for a process of planning: it changes torch.Tensor.
"""

from collections.abc import Callable
from typing import Any

ANSWERS: dict[str, Callable[[], Any]] = {
    "item": lambda: 1,
    "__bool__": lambda: True,
    "__int__": lambda: 1,
    "__float__": lambda: 1.0,
    "__index__": lambda: 1,
}


class ValueQuestions:
    """Answers for meta tensors from `arm` on."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self.asked = 0
        """How often a value was asked for."""

    def arm(self) -> None:
        kind = self._torch.Tensor
        for name, answer in ANSWERS.items():
            setattr(kind, name, self._answering(getattr(kind, name), answer))
        kind.cpu = self._staying(kind.cpu)
        kind.to = self._staying_at(kind.to)
        kind.tolist = self._listing(kind.tolist)

    def _answering(self, original: Callable[..., Any], answer: Callable[[], Any]) -> Callable[..., Any]:
        def asked(tensor: Any) -> Any:
            if not tensor.is_meta:
                return original(tensor)
            self.asked += 1
            return answer()

        return asked

    def _listing(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def tolist(tensor: Any) -> Any:
            if not tensor.is_meta:
                return original(tensor)
            self.asked += 1
            return _ones(tuple(tensor.shape))

        return tolist

    def _staying(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def cpu(tensor: Any, *arguments: Any, **options: Any) -> Any:
            return tensor if tensor.is_meta else original(tensor, *arguments, **options)

        return cpu

    def _staying_at(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def to(tensor: Any, *arguments: Any, **options: Any) -> Any:
            if tensor.is_meta:
                # Wherever it should go, it has nothing to take there.
                arguments = tuple(self._meta(argument) for argument in arguments)
                if options.get("device") is not None:
                    options["device"] = "meta"
            return original(tensor, *arguments, **options)

        return to

    def _meta(self, argument: Any) -> Any:
        is_place = isinstance(argument, str | int | self._torch.device) and not isinstance(argument, bool)
        return "meta" if is_place else argument


def _ones(shape: tuple[int, ...]) -> Any:
    if not shape:
        return 1
    return [_ones(shape[1:]) for _ in range(shape[0])]
