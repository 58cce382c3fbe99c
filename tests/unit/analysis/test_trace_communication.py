"""Communication kernels: how they are known, matched across ranks, and who is late."""

import re

import pytest

from agprof.analysis.trace import analyse_traces
from agprof.analysis.trace_stragglers import tail
from agprof.model.communication_kernels import Communication, hints_at_communication, operation
from agprof.model.trace_answers import TraceAnswer
from agprof.model.trace_tables import CpuKind, GpuKind
from synthetic_trace import TraceBuilder

ALL_REDUCE = "ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)"


@pytest.mark.parametrize(
    ("name", "library", "op"),
    [
        (ALL_REDUCE, "nccl", "all_reduce"),
        ("ncclKernel_SendRecv_RING_SIMPLE_Sum_int8_t(ncclDevComm*, unsigned long, ncclWork*)", "nccl", "send_recv"),
        ("ncclSymDevKernel_AllGather_LL(ncclSymDevArgs)", "nccl", "all_gather"),
        ("ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL", "nccl", "reduce_scatter"),
        ("void rcclGenericKernel<1>(ncclDevKernelArgsStorage)", "rccl", "other"),
        ("void (anonymous namespace)::multimem_all_reduce_kernel<c10::BFloat16>()", "symmetric memory", "all_reduce"),
        ("void c10d::symmetric_memory::two_shot_all_reduce_kernel<4>()", "symmetric memory", "all_reduce"),
        ("void vllm::cross_device_reduce_2stage<__nv_bfloat16, 8>(vllm::RankData*)", "custom all-reduce", "all_reduce"),
        ("deep_ep::internode_ll::dispatch<true, 3, 10, 7168>(void*)", "DeepEP", "dispatch"),
        ("deep_ep::intranode::combine<__nv_bfloat16, 8, 768>(__nv_bfloat16*)", "DeepEP", "combine"),
        ("nvshmemi_transfer_rma_nbi", "NVSHMEM", "other"),
        ("oneccl_allreduce_large<float>", "oneCCL", "all_reduce"),
        ("hcom_allReduce_", "HCCL", "all_reduce"),
    ],
)  # fmt: skip
def test_libraries(name: str, library: str, op: str) -> None:
    assert Communication.with_user().library(name) == library
    assert operation(name) == op


@pytest.mark.parametrize(
    "name",
    [
        "hipblasLt_gemm",
        "Cijk_Alik_Bljk_SB_Bias_AS_SAV_UserArgs_MT64x16x32",
        "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::MeanOps<float>>>()",
        "ampere_sgemm_128x64_nn",
        "void cub::DeviceReduceKernel<float>()",
        "flash_fwd_splitkv_combine_kernel",
        "void moe::dispatch_tokens()",
    ],
)
def test_what_only_looks_like_communication(name: str) -> None:
    assert Communication.with_user().library(name) is None


LONG_NAMES = {
    "nccl": "nccl" * 250_000,
    "late": "x" * 5000 + "nccl_all_reduce",
    "repeated": "all_reduce_" * 100_000,
    "control": "\0<a>",
    "empty": "",
}


@pytest.mark.parametrize("name", LONG_NAMES.values(), ids=LONG_NAMES)
def test_only_the_head_of_a_name_is_looked_at(name: str) -> None:
    """Names may be megabytes, and may be made to be slow to match."""
    for answer in (Communication.with_user().library, hints_at_communication, operation):
        assert answer(name) == answer(name[:4096])


def _kernels(**gpu: str) -> TraceBuilder:
    build = TraceBuilder()
    for start, name in enumerate(gpu.values()):
        build.gpu(name, start * 10, 10)
    return build


def test_the_users_own_library_comes_first() -> None:
    trace = _kernels(a="mylib_ring_exchange", b=ALL_REDUCE, c="gemm").build()
    answer = analyse_traces({0: trace}, communication={"mylib": "^mylib_|^ncclDev"})
    assert answer is not None
    assert {row.name: row.library for row in answer.kernels} == {
        "mylib_ring_exchange": "mylib",
        ALL_REDUCE: "mylib",
        "gemm": None,
    }
    assert answer.windows[0].communication_ns == 20
    with pytest.raises(re.error):
        analyse_traces({0: trace}, communication={"mylib": "("})


def test_kernels_that_hint_at_communication_are_listed() -> None:
    answer = analyse_traces({0: _kernels(a="fancy_p2p_allgather_v3", b="gemm").build()})
    assert answer is not None
    assert [row.name for row in answer.unclassified] == ["fancy_p2p_allgather_v3"]
    assert answer.windows[0].communication_ns == 0


def test_host_operators_are_no_kernels_whatever_their_name() -> None:
    build = TraceBuilder().gpu("gemm", 0, 10)
    build.cpu("triton_poi_fused_0", 0, 90, stream=7).cpu("nccl:all_reduce", 0, 90, kind=CpuKind.ANNOTATION)
    answer = analyse_traces({0: build.build()})
    assert answer is not None
    assert [row.name for row in answer.kernels] == ["gemm"]


def test_copies_are_copies_whatever_their_name() -> None:
    answer = analyse_traces({0: TraceBuilder().gpu(ALL_REDUCE, 0, 10, kind=GpuKind.MEMCPY).build()})
    assert answer is not None
    assert answer.kernels[0].kind == "memcpy"


def _ranks(durations: list[list[int]], *, numbered: bool = False, drop: int = 0) -> TraceAnswer:
    """`durations[rank][call]`; all ranks leave call i at (i + 1) x 1 ms."""
    traces = {}
    for rank, calls in enumerate(durations):
        build = TraceBuilder(rank=rank, world_size=len(durations)).gpu("gemm", 0, 1)
        for number, duration in enumerate(calls[: len(calls) - (drop if rank == 0 else 0)]):
            end = (number + 1) * 1_000_000
            build.launch(ALL_REDUCE, end - duration - 10, end - duration, duration, correlation=number + 1)
            if numbered:
                build.comm(end - duration, "all_reduce", correlation=number + 1, sequence=number, group="dp",
                           group_size=len(durations), dtype="Float", elements_in=1000, elements_out=1000)  # fmt: skip
        traces[rank] = build.build()
    answer = analyse_traces(traces)
    assert answer is not None
    return answer


def test_wait_and_transfer() -> None:
    answer = _ranks([[100_000, 200_000], [400_000, 50_000]])
    (row,) = answer.collectives
    assert (row.count, row.sum_ns) == (4, 750_000)
    assert row.transfer_ns == 75_000
    assert row.wait_ns == (0 + 150_000 + 300_000 + 0) / 4
    assert {s.rank: s.wait_ns for s in answer.stragglers} == {0: 150_000, 1: 300_000}


def test_bandwidth_as_nccl_tests() -> None:
    answer = _ranks([[100_000, 100_000], [400_000, 400_000]], numbered=True)
    (row,) = answer.collectives
    assert row.bytes_per_call == 4000
    assert row.algorithm_bandwidth == pytest.approx(4000 / 100e-6)
    assert row.bus_bandwidth == pytest.approx(4000 / 100e-6)  # 2 (n - 1) / n with n = 2
    assert answer.quality[0].collectives_with_size == 2


@pytest.mark.parametrize(
    ("op", "elements_in", "elements_out", "want"),
    [
        ("all_gather", 100, 800, 800 * 2),
        ("reduce_scatter", 800, 100, 800 * 2),
        ("all_reduce", 100, 100, 100 * 2),
        ("broadcast", 100, 100, 100 * 2),
        ("all_to_all", 100, 120, 120 * 2),
    ],
)
def test_total_bytes(op: str, elements_in: int, elements_out: int, want: int) -> None:
    build = TraceBuilder().gpu(ALL_REDUCE, 0, 10, correlation=5)
    build.comm(0, op, correlation=5, group_size=8, dtype="BFloat16", elements_in=elements_in, elements_out=elements_out)
    answer = analyse_traces({0: build.build()})
    assert answer is not None
    assert answer.collectives[0].bytes_per_call == want


def test_sizes_come_from_the_host_where_the_kernel_does_not_say() -> None:
    build = TraceBuilder().gpu(ALL_REDUCE, 0, 10, correlation=5, external_id=77)
    build.comm(0, "wait", external_id=77).comm(0, "all_reduce", external_id=77, dtype="Float", elements_in=10)
    answer = analyse_traces({0: build.build()})
    assert answer is not None
    assert answer.collectives[0].bytes_per_call == 40


def test_different_numbers_of_calls_are_not_matched_by_order() -> None:
    answer = _ranks([[1000, 1000, 1000], [500, 500, 500]], drop=1)
    assert answer.collectives[0].transfer_ns is None
    assert "different numbers of calls (2 to 3)" in answer.communication_sentence
    assert "not available" in answer.stragglers_sentence


def test_but_by_their_numbers() -> None:
    answer = _ranks([[1000, 1000, 1000], [500, 500, 500]], drop=1, numbered=True)
    assert answer.collectives[0].transfer_ns == 500
    assert [row.collectives for row in answer.stragglers] == [2, 2]


def test_calls_that_never_meet_are_not_matched() -> None:
    first = TraceBuilder(rank=0, world_size=2).gpu(ALL_REDUCE, 0, 100).gpu(ALL_REDUCE, 1000, 100)
    other = TraceBuilder(rank=1, world_size=2).gpu(ALL_REDUCE, 500, 100).gpu(ALL_REDUCE, 1500, 100)
    answer = analyse_traces({0: first.build(), 1: other.build()})
    assert answer is not None
    assert answer.collectives[0].transfer_ns is None
    assert "do not run at the same time" in answer.communication_sentence


def test_with_ranks_missing_nobody_is_blamed() -> None:
    traces = {}
    for rank in (0, 1):
        traces[rank] = TraceBuilder(rank=rank, world_size=8).gpu(ALL_REDUCE, 0, 100 - rank).build()
    answer = analyse_traces(traces)
    assert answer is not None
    assert "2 of 8 ranks are here" in answer.stragglers_sentence
    assert not answer.stragglers


def test_the_rank_that_is_always_last_is_named() -> None:
    late = [[300_000] * 20, [310_000] * 20, [305_000] * 20, [20_000] * 20]
    answer = _ranks(late)
    assert [row.rank for row in answer.stragglers if row.is_straggler] == [3]
    assert answer.stragglers[3].last_share == 1.0
    assert answer.stragglers[3].lateness_ns == 280_000
    assert "rank 3" in answer.stragglers_sentence


def test_only_what_the_others_wait_in_its_calls_is_a_stragglers_doing() -> None:
    """Rank 3 comes last to 18 of 20 calls; to the first two, rank 0 comes last by 900 us, and all wait for that."""
    late = [[20_000] * 2 + [300_000] * 18, *([[920_000] * 2 + [300_000] * 18] * 2), [920_000] * 2 + [20_000] * 18]
    answer = _ranks(late)
    assert [row.rank for row in answer.stragglers if row.is_straggler] == [3]
    assert answer.stragglers[3].caused_wait_ns == 18 * 3 * 280_000
    assert answer.stragglers[0].caused_wait_ns == 2 * 3 * 900_000
    assert answer.stragglers_sentence.endswith("they wait 5.04 ms each in these.")


def test_turns_are_no_straggler() -> None:
    turns = [[20_000 if call % 4 == rank else 300_000 for call in range(20)] for rank in range(4)]
    answer = _ranks(turns)
    assert not any(row.is_straggler for row in answer.stragglers)
    assert "more than chance" in answer.stragglers_sentence


def test_late_by_little_is_no_straggler() -> None:
    answer = _ranks([[300_000] * 20, [300_000] * 20, [299_000] * 20])
    assert answer.stragglers[2].last_share == 1.0
    assert not any(row.is_straggler for row in answer.stragglers)


def test_one_rank_has_no_straggler() -> None:
    answer = _ranks([[300_000] * 20])
    assert answer.stragglers == ()
    assert "nobody to compare with" in answer.stragglers_sentence


def test_tail_of_the_binomial() -> None:
    assert tail(5, 8, 1 / 8) == pytest.approx(sum([56 * 7**3, 28 * 7**2, 8 * 7, 1]) / 8**8)
    assert tail(60_000, 100_000, 0.5) < 1e-300
    assert tail(49_000, 100_000, 0.5) == pytest.approx(1.0)
