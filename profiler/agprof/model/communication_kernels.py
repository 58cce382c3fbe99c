"""What kernels' names say of communication: by which library and operation, and which only look as if they did.

The category of an activity comes first (a memcpy is a memcpy, a host operator is no kernel); a name is asked only to
tell kernels that communicate from those that compute. Definitions: docs/trace-analysis.md.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

LIBRARIES: tuple[tuple[str, str], ...] = (
    # library, pattern that its kernels' names match anywhere; the first match counts
    ("nccl", r"^(void )?nccl(Dev)?Kernel|^nccl\w*Kernel|^ncclSymk?DevKernel|^ncclSymk?Kernel"),
    ("rccl", r"^rccl\w*Kernel|^(void )?rccl|^mscclKernel|^msccl(pp)?_?[Kk]ernel"),
    ("symmetric memory", r"multimem_\w*(reduce|gather|broadcast|copy)|(one|two)_shot_all_reduce|symm(etric)?_mem"),
    ("custom all-reduce", r"cross_device_reduce|custom_all_?reduce|quick_?(all_?)?reduce|(one|two)shot_?all_?reduce"
                          r"|all_?reduce_fusion|trtllm_\w*all_?reduce|lamport\w*all_?reduce|aiter::\w*(all_?reduce|reduce_scatter|all_?gather)"),
    ("DeepEP", r"deep_ep::|(internode|intranode)(_ll)?::(dispatch|combine|notify|cached_notify|clean_low)|hybrid_ep"),
    ("NVSHMEM", r"nvshmem|rocshmem"),
    ("oneCCL", r"oneccl|\bccl::|ccl_kernel|ccl_(all|reduce|broad)"),
    ("HCCL", r"\bhccl|hcom_|hcclAi"),
    ("UCC", r"\bucc_|\bucg_|mscclpp"),
    ("transformer engine", r"userbuffers_\w+|ubuf_"),
)  # fmt: skip

_OPERATIONS: tuple[tuple[str, str], ...] = (
    ("reduce_scatter", r"reduce_?scatter"),
    ("all_gather", r"all_?gather"),
    ("all_reduce", r"all_?reduce|cross_device_reduce|quick_?reduce"),
    ("all_to_all", r"all_?to_?all|alltoallv?"),
    ("send_recv", r"send_?recv"),
    ("broadcast", r"broad_?cast"),
    ("reduce", r"reduce"),
    ("gather", r"gather"),
    ("scatter", r"scatter"),
    ("barrier", r"barrier"),
    ("dispatch", r"dispatch"),
    ("combine", r"combine"),
)
_HINT = re.compile(
    r"all_?reduce|all_?gather|reduce_?scatter|all_?to_?all|send_?recv|broadcast_?(kernel_)?(ring|tree|p2p)|(?<![a-z0-9])p2p|"
    r"peer_|nvlink|[nr]ccl|shmem|cross_device|inter_?node|intra_?node|collective_?comm|multimem|allreduce",
    re.IGNORECASE,
)
_NO_HINT = re.compile(r"hipblaslt|cublaslt|at::native::reduce_kernel", re.IGNORECASE)
_LONGEST_MATCHED = 4096
"""Characters of a name that are looked at: names may be megabytes, and a match takes time."""


@dataclass(frozen=True, slots=True)
class Communication:
    """How communication kernels are known: the table above, after what the user added to it."""

    rules: tuple[tuple[str, re.Pattern[str]], ...]

    @classmethod
    def with_user(cls, user: Mapping[str, str] | None = None) -> "Communication":
        """The user's libraries come first. Raises re.error for a pattern that is none."""
        both = [*(user or {}).items(), *LIBRARIES]
        return cls(tuple((library, re.compile(pattern, re.IGNORECASE)) for library, pattern in both))

    def library(self, name: str) -> str | None:
        """The library of a kernel by its name; None when it does not communicate."""
        head = name[:_LONGEST_MATCHED]
        return next((library for library, pattern in self.rules if pattern.search(head)), None)

    def communicates(self, name: str) -> bool:
        """Whether a kernel of this name communicates."""
        return self.library(name) is not None


def operation(name: str) -> str:
    """The operation of a communication kernel by its name; `other` where the name does not say.

    >>> operation("ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgs)"), operation("ncclKernel_SendRecv")
    ('all_reduce', 'send_recv')
    """
    head = name[:_LONGEST_MATCHED]
    return next((op for op, pattern in _OPERATIONS if re.search(pattern, head, re.IGNORECASE)), "other")


def hints_at_communication(name: str) -> bool:
    """Whether a compute kernel's name looks as if it communicated."""
    head = name[:_LONGEST_MATCHED]
    return _HINT.search(head) is not None and _NO_HINT.search(head) is None
