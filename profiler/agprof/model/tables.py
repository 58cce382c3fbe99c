"""The tables of a run folder: names, columns, types and meaning, in one place.

Producers (instruments, sampler) append rows as tuples in exactly this column order; `store.reader` gives the same
tables back as data frames with these columns plus `rank` (tables of a rank) or `node` (tables of a node). A column
whose value was not measured is None, never 0. All times are CLOCK_MONOTONIC nanoseconds of the node
(`time.monotonic_ns`); the stream's header holds the pair (realtime, monotonic) that turns them into wall time.
"""

from dataclasses import dataclass
from typing import Literal

SCHEMA_VERSION = 1
"""Version of the tables and of the run folder. Raised when a column changes its meaning or goes away."""

Type = Literal["int", "float", "str", "bool"]
Scope = Literal["rank", "node"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name (unit included), type and meaning."""

    name: str
    type: Type
    doc: str
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """One table: its name, the scope of its writer, and its columns in row order."""

    name: str
    scope: Scope
    doc: str
    columns: tuple[Column, ...]


def table(name: str, scope: Scope, doc: str, *columns: tuple[str, str, str]) -> Table:
    """Build a table from (name, type, doc) triples; a type that ends in `?` may be None."""
    built = []
    for column, type_, meaning in columns:
        bare: Type = type_.rstrip("?")  # type: ignore[assignment]
        built.append(Column(column, bare, meaning, optional=type_.endswith("?")))
    return Table(name, scope, doc, tuple(built))


STEPS = table(
    "steps",
    "rank",
    "One row per optimizer step. Steps tile the time line: a step ends when its optimizer update ends and the next "
    "begins there; the first begins at the first phase seen.",
    ("step", "int", "number of the optimizer step, from 0"),
    ("start_ns", "int", "begin"),
    ("end_ns", "int", "end of the optimizer update"),
    ("micro_steps", "int", "backward passes in the step"),
    ("loss", "float?", "mean loss over the micro-steps"),
    ("samples", "int?", "samples of this rank"),
    ("tokens", "int?", "tokens of this rank"),
    ("profiled", "bool", "an expensive instrument (FLOPs, memory) ran in this step; left out of statistics"),
    ("unpadded_tokens", "int?", "of `tokens` those that are no padding"),
)

MICRO_STEPS = table(
    "micro_steps",
    "rank",
    "One row per backward pass.",
    ("step", "int", "optimizer step it belongs to"),
    ("micro_step", "int", "number within the step, from 0"),
    ("start_ns", "int", "begin: end of the micro-step before"),
    ("end_ns", "int", "end"),
    ("loss", "float?", "loss given to backward, before any scaling by the framework"),
    ("samples", "int?", "samples"),
    ("tokens", "int?", "tokens"),
    ("unpadded_tokens", "int?", "of `tokens` those that are no padding"),
)

SPANS = table(
    "spans",
    "rank",
    "Time ranges of the rank's own threads, nested by time within a thread. Phases are spans of category `phase`.",
    ("span", "int", "number within the rank, from 0"),
    ("step", "int", "optimizer step"),
    ("micro_step", "int", "micro-step within the step"),
    ("category", "str", "phase | range (the user's agprof.range) | module"),
    ("name", "str", "for phases: data | forward | backward | optimizer; else the range's own name"),
    ("start_ns", "int", "begin on the host"),
    ("end_ns", "int", "end on the host"),
    ("thread", "int", "thread id"),
    ("depth", "int", "open spans of the same thread when it began"),
)

DEVICE_SPANS = table(
    "device_spans",
    "rank",
    "The device's time of spans, from CUDA events that were never synchronised on. Empty on a CPU.",
    ("span", "int", "number of the span"),
    ("start_ns", "int", "begin on the device, since the rank's reference event, shifted to the host's clock"),
    ("duration_ns", "int", "duration on the device"),
)

COLLECTIVES = table(
    "collectives",
    "rank",
    "One row per collective call of this rank.",
    ("step", "int", "optimizer step"),
    ("micro_step", "int", "micro-step"),
    ("op", "str", "all_reduce, all_gather, reduce_scatter, broadcast, barrier, ... (one name per operation kind)"),
    ("group", "str", "name of the process group"),
    ("group_size", "int", "ranks in the group"),
    (
        "bytes",
        "int?",
        "total bytes S as nccl-tests defines it for the operation: all-gather n x input, "
        "reduce-scatter n x output, others the buffer's size; None where it can't be known",
    ),
    ("dtype", "str?", "element type"),
    ("async_op", "bool", "issued asynchronously"),
    ("start_ns", "int", "call entered"),
    ("issue_end_ns", "int", "call returned to the caller (sync: the operation is done on the host)"),
    ("end_ns", "int?", "operation complete; None when it was not seen to complete"),
    ("wait_ns", "int", "time the caller stood in wait() on it, beside start..issue_end"),
    ("tap", "str", "which instrument saw it: wrapper | dispatcher | functional"),
    ("thread", "int", "thread id"),
    ("caller", "str", "innermost phase when it was issued: data | forward | backward | optimizer | other"),
    (
        "peers",
        "str?",
        "global ranks at the other end: the peer of send and recv, the root of broadcast, reduce, gather and scatter; "
        "of a batch `>3:64,<1:64`: 64 bytes sent to rank 3, 64 received from rank 1. None where it is not known",
    ),
)

WAITS = table(
    "waits",
    "rank",
    "Time a thread stood in wait() on an asynchronous collective.",
    ("step", "int", "optimizer step"),
    ("op", "str", "operation waited for"),
    ("start_ns", "int", "begin"),
    ("end_ns", "int", "end"),
    ("thread", "int", "thread id"),
)

GENERATIONS = table(
    "generations",
    "rank",
    "One row per call of a Hugging Face model's `generate`, seen from its arguments and its result.",
    ("step", "int", "optimizer step in progress when it began"),
    ("start_ns", "int", "begin"),
    ("end_ns", "int", "end"),
    ("batch", "int?", "sequences in the result"),
    ("prompt_tokens", "int?", "positions of a prompt, padding included"),
    ("new_tokens", "int?", "positions generated per sequence; those after a sequence's end marker count too"),
)

LEDGER = table(
    "ledger",
    "rank",
    "torch's flight recorder against our taps, per group and operation, at the end of the run. "
    "recorded - seen = unseen collectives.",
    ("group", "str", "name of the process group"),
    ("op", "str", "operation kind"),
    ("recorded", "int", "calls in the flight recorder"),
    ("seen", "int", "calls our taps saw in the same window"),
    ("recorded_bytes", "int?", "bytes in the flight recorder"),
    ("seen_bytes", "int?", "bytes our taps saw"),
    ("complete", "bool", "false when the recorder's ring had dropped older entries"),
)

MEMORY = table(
    "memory",
    "rank",
    "Memory of the rank at the borders of phases.",
    ("step", "int", "optimizer step"),
    ("micro_step", "int", "micro-step"),
    ("at", "str", "the border: `<phase>.end` or `step.end`"),
    ("time_ns", "int", "time"),
    ("rss_bytes", "int?", "resident set of the process"),
    ("rss_peak_bytes", "int?", "highest resident set since the process began (getrusage)"),
    ("allocated_bytes", "int?", "device allocator: live tensors"),
    ("reserved_bytes", "int?", "device allocator: held from the driver"),
    ("allocated_peak_bytes", "int?", "device allocator's own peak; falls when somebody resets it"),
)

MODULES = table(
    "modules",
    "rank",
    "The module trees in the profile step, summed over its micro-steps. Written by one rank. `device time` is the time "
    "of the operations themselves, without what Python does between them.",
    ("step", "int", "profiled optimizer step"),
    ("root", "int", "which tree: number of the root module in the order of first calls, 0 for the first"),
    ("path", "str", "dotted path from the root, '' for the root"),
    ("parent", "str?", "path of the parent; None for the root"),
    ("depth", "int", "0 for the root"),
    ("type", "str", "class name"),
    ("order", "int", "position in the module tree, parents first"),
    ("params", "int", "own and descendants' parameters, shared ones once"),
    ("trainable_params", "int", "of them those that require a gradient"),
    ("calls", "int?", "times its forward ran outside backward"),
    ("recomputed_calls", "int?", "times its forward ran again inside backward"),
    ("forward_flops", "float?", "counted: multiply-adds x 2 executed outside backward, with descendants"),
    ("backward_flops", "float?", "counted: executed in backward for it, without recomputation, with descendants"),
    (
        "recomputed_flops",
        "float?",
        "counted: executed again in backward, by activation checkpointing or inside an attention kernel",
    ),
    ("attention_flops", "float?", "of forward and backward: products of queries, scores and values"),
    ("modelled_forward_flops", "float?", "from shapes: one product of each operation's operands"),
    ("modelled_backward_flops", "float?", "from shapes: once more for each operand that requires a gradient"),
    ("forward_bytes", "float?", "modelled: operands and results of the counted operations, each moved once"),
    ("backward_bytes", "float?", "the same for backward, without recomputation"),
    ("forward_ns", "int?", "device time outside backward, with descendants"),
    ("backward_ns", "int?", "device time in backward, without recomputation"),
    ("recomputed_ns", "int?", "device time of what is computed again in backward"),
)

OPERATIONS = table(
    "operations",
    "rank",
    "The operations of the profile step by kind and element type, summed over its micro-steps. Written by one rank.",
    ("step", "int", "profiled optimizer step"),
    ("in_pass", "str", "forward | backward | recomputed | outside"),
    ("kind", "str", "matmul | convolution | attention | other (counts no FLOPs)"),
    ("dtype", "str?", "element type of the operands, as bfloat16"),
    ("calls", "int", "operations"),
    ("flops", "float", "multiply-adds x 2; 0 for other"),
    ("bytes", "float?", "modelled: operands and results, each moved once"),
    ("duration_ns", "int?", "device time"),
)

MEMORY_PARTS = table(
    "memory_parts",
    "rank",
    "The memory account of a rank at certain moments: how many bytes each part holds. One row of part `total` per "
    "moment and space is measured on its own; what the parts leave of it is unexplained.",
    ("step", "int", "optimizer step"),
    (
        "at",
        "str",
        "standing (between steps, before the profile step) | peak (the highest of the profile step) | "
        "generation (the highest of a `generate` in it) | oom",
    ),
    ("space", "str", "device | host: where these bytes are"),
    (
        "part",
        "str",
        "total | parameters | gradients | optimizer_states | master_weights | activations | temporary | buckets | "
        "buffers | kv_cache | inputs | context | fragmentation",
    ),
    ("detail", "str", "what of it: trainable, frozen, exp_avg ...; empty when it is all"),
    ("bytes", "int", "bytes"),
    ("elements", "int?", "elements, where that means something"),
    ("source", "str", "measured | modelled"),
    ("method", "str", "how these bytes are known"),
)

ALLOCATIONS = table(
    "allocations",
    "rank",
    "The largest tensors that were alive at a moment.",
    ("step", "int", "optimizer step"),
    ("at", "str", "peak | oom"),
    ("space", "str", "device | host"),
    ("part", "str", "part of the account that it belongs to"),
    ("bytes", "int", "bytes of its storage"),
    ("shape", "str", "as `2x128x768`"),
    ("dtype", "str", "element type"),
    ("operation", "str", "what made it: aten operation, or empty"),
    ("module", "str", "path of the module in progress, or the parameter's name"),
    ("phase", "str", "phase in progress when it was made"),
    ("stack", "str", "Python frames, outermost first, one per line: `file:line function`; empty when not kept"),
)

MEMORY_CURVE = table(
    "memory_curve",
    "rank",
    "Bytes of live tensors over the profile step, from their own account; thinned, keeping highest and lowest.",
    ("step", "int", "optimizer step"),
    ("time_ns", "int", "time"),
    ("live_bytes", "int", "bytes of live tensors"),
    ("phase", "str", "phase in progress"),
    ("module", "str", "path of the module in progress, or empty"),
)

REPEATS = table(
    "repeats",
    "rank",
    "Frozen modules that were given inputs they had been given before, over the profile step and those after it in "
    "which this was looked at. Only outermost frozen modules are looked at; inputs are compared by checksums of 64 "
    "bits.",
    ("first_step", "int", "first optimizer step looked at"),
    ("last_step", "int", "last"),
    ("root", "int", "tree, as in `modules`"),
    ("path", "str", "path of the module"),
    ("calls", "int", "calls looked at"),
    ("repeated_calls", "int", "of them with all tensor inputs equal to those of an earlier call"),
    ("repeated_at_once", "int?", "of the repeated calls those whose earlier call was in the same micro-step"),
    (
        "repeated_items_share",
        "float?",
        "share of the items in the batches of its calls in the profile step that equal an earlier item of their call",
    ),
    ("forward_ns_per_call", "int?", "median host time of a call; None where a device works meanwhile"),
    ("unverified_calls", "int?", "calls whose inputs were too large or of a kind that is not compared; not repeated"),
)

READBACKS = table(
    "readbacks",
    "rank",
    "Values that the host read back from tensors in the profile step (`.item()` and the like): on a GPU each waits for "
    "the device.",
    ("step", "int", "optimizer step"),
    (
        "kind",
        "str",
        "item (one value) | copy (a tensor copied to the host) | size (a result whose size depends on values, as of "
        "nonzero)",
    ),
    ("place", "str", "innermost Python frame outside torch: `file:line function`"),
    ("calls", "int", "times in the step"),
    ("duration_ns", "int?", "time of the calls"),
    ("package", "str?", "installed package that the place belongs to; None for the job's own code"),
)

MARKS = table(
    "marks",
    "rank",
    "Points in time: the user's agprof.mark and the instruments' own.",
    ("time_ns", "int", "time"),
    ("step", "int", "optimizer step"),
    ("source", "str", "user | agprof"),
    ("name", "str", "text"),
)

FACTS = table(
    "facts",
    "rank",
    "What the instruments learned once: framework, ZeRO stage, model size, device ... Later rows win.",
    ("time_ns", "int", "time"),
    ("key", "str", "dotted key, as deepspeed.zero_stage"),
    ("value", "str", "value as JSON"),
)

FAULTS = table(
    "faults",
    "rank",
    "Failures of instruments. Training never sees them; the report does.",
    ("time_ns", "int", "time"),
    ("instrument", "str", "which one"),
    ("where", "str", "what it was doing"),
    ("error", "str", "type and message"),
    ("count", "int", "how often so far; the instrument is off after the third"),
)

COST = table(
    "cost",
    "rank",
    "What the instruments themselves cost, as they measured it, per flush.",
    ("time_ns", "int", "time"),
    ("flush_cpu_ns", "int", "CPU time of the flusher thread since the row before"),
    ("rows", "int", "rows written since the row before"),
    ("bytes", "int", "bytes written since the row before"),
    ("lost_rows", "int", "rows lost since the row before (disk full, I/O error)"),
)

HOST_SAMPLES = table(
    "host_samples",
    "node",
    "The whole host, once per second (tier `medium`). Rates are counters' deltas over the sample's period.",
    ("time_ns", "int", "time"),
    ("period_ns", "int", "time since the sample before"),
    ("cpu_ratio", "float?", "busy share of all cores, 0..1"),
    ("memory_used_bytes", "int?", "total - available"),
    ("memory_total_bytes", "int?", "total"),
    ("swap_used_bytes", "int?", "swap in use"),
    ("network_sent_bytes_per_s", "float?", "hardware interfaces; where none is visible, all but loopback"),
    ("network_received_bytes_per_s", "float?", "hardware interfaces; where none is visible, all but loopback"),
    ("loopback_bytes_per_s", "float?", "sent over loopback: gloo between ranks of one node"),
    ("disk_read_bytes_per_s", "float?", "all disks; what is stacked on them (RAID, encryption) is not added"),
    ("disk_write_bytes_per_s", "float?", "all disks; what is stacked on them is not added"),
    ("load_1m", "float?", "load average over one minute"),
    ("iowait_ratio", "float?", "share of all cores' time idle while a disk was waited for, 0..1"),
    ("steal_ratio", "float?", "share of all cores' time taken by the hypervisor for others, 0..1"),
    ("cpu_pressure_ratio", "float?", "PSI some: share of time in which a task waited for a CPU, 0..1"),
    ("memory_pressure_ratio", "float?", "PSI some: share of time in which a task waited for memory, 0..1"),
    ("memory_stall_ratio", "float?", "PSI full: share of time in which all tasks waited for memory, 0..1"),
    ("io_pressure_ratio", "float?", "PSI some: share of time in which a task waited for a disk, 0..1"),
    ("io_stall_ratio", "float?", "PSI full: share of time in which all tasks waited for a disk, 0..1"),
    ("swap_in_bytes_per_s", "float?", "read back from swap"),
    ("swap_out_bytes_per_s", "float?", "written to swap"),
    ("cgroup_memory_bytes", "int?", "memory charged to the job's cgroup"),
    ("cgroup_memory_limit_bytes", "int?", "lowest limit of the job's cgroup and those above it; None when unlimited"),
    ("cgroup_cpu_limit_cores", "float?", "CPU quota of the job's cgroup in cores; None when unlimited"),
    ("cgroup_throttled_ratio", "float?", "share of time in which the cgroup's CPU quota was used up, 0..1"),
    ("cgroup_oom_kills", "int?", "processes of the cgroup killed for want of memory so far (memory.events)"),
    ("cpu_energy_uj", "int?", "RAPL: energy of all CPU packages since the sample before, wraps counted"),
    ("dram_energy_uj", "int?", "RAPL: energy of their memory since the sample before; None where it is not told apart"),
)

CORE_SAMPLES = table(
    "core_samples",
    "node",
    "Each core of the host (tier `slow`).",
    ("time_ns", "int", "time"),
    ("period_ns", "int", "time since the sample before"),
    ("core", "int", "number of the logical CPU"),
    ("busy_ratio", "float?", "busy share over the period, 0..1"),
)

NETWORK_SAMPLES = table(
    "network_samples",
    "node",
    "Each network interface that is up, InfiniBand ports among them, whose RDMA traffic no other counter sees (tier "
    "`medium`).",
    ("time_ns", "int", "time"),
    ("period_ns", "int", "time since the sample before"),
    ("interface", "str", "name: eth0, ib0, mlx5_0/1"),
    ("kind", "str", "ethernet | infiniband | loopback | virtual"),
    ("sent_bytes_per_s", "float?", "sent"),
    ("received_bytes_per_s", "float?", "received"),
    ("errors", "int?", "packets dropped or in error in the period, both ways"),
    ("speed_bits_per_s", "int?", "speed of the link as the driver tells it"),
)

PROCESS_SAMPLES = table(
    "process_samples",
    "node",
    "The process tree of each rank. Rates are deltas over the sample's period.",
    ("time_ns", "int", "time"),
    ("period_ns", "int", "time since the sample before"),
    ("rank", "int?", "rank of the tree; None: the command of `agprof monitor`"),
    ("role", "str", "rank (the process itself) | worker (its children, summed: DataLoader workers and the like)"),
    ("processes", "int", "processes summed"),
    ("cpu_cores", "float?", "CPU in use, in cores"),
    ("rss_bytes", "int?", "resident set, summed"),
    ("pss_bytes", "int?", "proportional set; read less often than the rest"),
    ("threads", "int?", "threads"),
    ("read_bytes_per_s", "float?", "storage reads"),
    ("write_bytes_per_s", "float?", "storage writes"),
    ("voluntary_switches_per_s", "float?", "context switches of the main threads because they waited"),
    ("involuntary_switches_per_s", "float?", "context switches of the main threads because the CPU was taken away"),
    ("loaders", "int?", "DataLoader workers among the processes summed; None where torch before 2.5 may hide some"),
    ("loader_cpu_cores", "float?", "CPU in use by these, in cores"),
    ("cpu_wait_ratio", "float?", "share of time in which a main thread was ready to run and had no CPU, mean, 0..1"),
)

GPUS = table(
    "gpus",
    "node",
    "The node's GPUs and the MIG instances that they are split into: once, and again when something here has changed. "
    "An instance has the columns that are its own, and rows in gpu_states, gpu_activity and gpu_processes; power, "
    "energy, clocks and utilization are those of the whole GPU.",
    ("gpu", "int", "NVML index on this node; of a MIG instance 1000 * (its GPU's index + 1) + its slot"),
    ("uuid", "str?", "UUID"),
    ("pci_bus_id", "str?", "PCI bus id"),
    ("name", "str?", "product name as NVML gives it"),
    ("memory_total_bytes", "int?", "total"),
    ("power_limit_mw", "int?", "enforced power limit"),
    ("driver_version", "str?", "driver"),
    ("architecture", "str?", "ampere, hopper ... as NVML tells it"),
    ("compute_capability", "str?", "8.0, 9.0 ..."),
    ("mig_parent", "int?", "index of the GPU that a MIG instance is part of; None: a whole GPU"),
    ("mig_enabled", "bool?", "whether the GPU is split into MIG instances"),
    ("power_limit_default_mw", "int?", "the limit that the maker set"),
    ("sm_clock_max_mhz", "int?", "highest SM clock"),
    ("memory_clock_max_mhz", "int?", "highest memory clock"),
    ("nvlinks", "int?", "NVLinks that are up"),
    ("pcie", "str?", "link as it can be at most: gen 5 x16"),
    ("numa_node", "int?", "the host's NUMA node that it is attached to"),
)

GPU_SAMPLES = table(
    "gpu_samples",
    "node",
    "Each GPU, by NVML, five times a second (tier `fast`). What NVML counts is given as its change since the sample "
    "before, wraps counted and resets left out; energy as the counter itself.",
    ("time_ns", "int", "time"),
    ("gpu", "int", "NVML index on this node"),
    ("utilization_ratio", "float?", "share of time in which at least one kernel ran, 0..1"),
    ("memory_busy_ratio", "float?", "share of time in which memory was read or written, 0..1"),
    ("memory_used_bytes", "int?", "earlier recordings only: now in gpu_states"),
    ("power_mw", "int?", "power; what it means depends on the architecture, see power_kind"),
    ("power_kind", "str?", "instant | average_1s"),
    ("energy_mj", "int?", "energy counter since the driver was loaded"),
    ("sm_clock_mhz", "int?", "SM clock"),
    ("memory_clock_mhz", "int?", "memory clock"),
    ("temperature_c", "int?", "earlier recordings only: now in gpu_states"),
    ("clock_event_reasons", "int?", "bit mask of clock event reasons at this instant"),
    ("power_average_mw", "int?", "power averaged by the driver over 1 s, where it tells it apart; once per second"),
    (
        "pcie_sent_bytes_per_s",
        "float?",
        "PCIe, from the GPU (counters, not the sampled throughput). A counter of 32 bits, as sampler_state then says, "
        "is taken to run round at most once per period: 21 GB/s at 0.2 s",
    ),
    ("pcie_received_bytes_per_s", "float?", "PCIe, to the GPU"),
    ("nvlink_sent_bytes_per_s", "float?", "NVLink payload, all links, from the GPU"),
    ("nvlink_received_bytes_per_s", "float?", "NVLink payload, all links, to the GPU"),
    (
        "throttled_power_ns",
        "int?",
        "time with clocks held down for power (cap, brake, board limit) in that period: the longest of these, as they "
        "overlap",
    ),
    (
        "throttled_thermal_ns",
        "int?",
        "time with clocks held down for heat (software, hardware) in that period, in the same way",
    ),
    ("throttled_other_ns", "int?", "time with clocks held down for sync boost or reliability in that period"),
)

GPU_STATES = table(
    "gpu_states",
    "node",
    "What changes slowly on each GPU, by NVML, once per second (tier `medium`).",
    ("time_ns", "int", "time"),
    ("gpu", "int", "NVML index on this node"),
    ("memory_used_bytes", "int?", "in use by processes, without the driver's reserve (version 2 of the call)"),
    ("memory_reserved_bytes", "int?", "the driver's own reserve"),
    ("memory_total_bytes", "int?", "used + reserved + free"),
    ("temperature_c", "int?", "core temperature"),
    ("memory_temperature_c", "int?", "temperature of the memory"),
    ("power_limit_mw", "int?", "enforced power limit at this time"),
)

GPU_ACTIVITY = table(
    "gpu_activity",
    "node",
    "What the units of each GPU did between two readings of NVML's GPM counters (Hopper and later; tier `medium`), "
    "averaged over the whole period, idle time included.",
    ("time_ns", "int", "end of the period"),
    ("period_ns", "int", "time since the reading before"),
    ("gpu", "int", "NVML index on this node"),
    ("sm_ratio", "float?", "share of SMs with work, 0..1"),
    ("occupancy_ratio", "float?", "warps resident on the SMs, of the most possible, 0..1"),
    ("tensor_ratio", "float?", "tensor cores in use, any type, 0..1"),
    ("dram_ratio", "float?", "bandwidth of the memory in use, of the theoretical, 0..1"),
    ("fp64_ratio", "float?", "fp64 units in use, 0..1"),
    ("fp32_ratio", "float?", "fp32 units in use, 0..1"),
    ("fp16_ratio", "float?", "fp16 units in use, tensor cores not counted, 0..1"),
    ("pcie_sent_bytes_per_s", "float?", "PCIe, from the GPU; None for a MIG instance"),
    ("pcie_received_bytes_per_s", "float?", "PCIe, to the GPU; None for a MIG instance"),
)

GPU_HEALTH = table(
    "gpu_health",
    "node",
    "Memory errors of each GPU (tier `slow`). ECC errors are counted since the driver was loaded (volatile), rows that "
    "were replaced since the GPU was made.",
    ("time_ns", "int", "time"),
    ("gpu", "int", "NVML index on this node"),
    ("ecc_corrected", "int?", "errors that ECC put right"),
    ("ecc_uncorrected", "int?", "errors that it could not"),
    ("remapped_rows_corrected", "int?", "rows of memory replaced after corrected errors"),
    ("remapped_rows_uncorrected", "int?", "rows replaced after uncorrected errors"),
    ("remap_pending", "bool?", "a row waits for a reset of the GPU to be replaced"),
    ("remap_failed", "bool?", "a row could not be replaced: the GPU needs service"),
)

GPU_PROCESSES = table(
    "gpu_processes",
    "node",
    "Processes that hold memory on each GPU (tier `slow`). NVML numbers them as the host does: in a container they "
    "can't be told apart, and `rank` and `name` are None.",
    ("time_ns", "int", "time"),
    ("gpu", "int", "NVML index on this node"),
    ("pid", "int", "number of the process on the host"),
    ("kind", "str", "compute | graphics; compute for a process of both kinds, which has one row"),
    ("used_bytes", "int?", "memory that it holds; None where NVML does not say (no permission, MIG)"),
    ("owner", "str", "rank | child (of a rank) | other | not visible (numbers of another pid namespace)"),
    ("rank", "int?", "the rank, or the one whose child it is"),
    ("name", "str?", "name of the program where it can be read"),
)

GPU_EVENTS = table(
    "gpu_events",
    "node",
    "What the driver reported by itself: each once.",
    ("time_ns", "int", "when it was read"),
    ("gpu", "int?", "NVML index on this node; None where the driver does not say"),
    ("kind", "str", "xid | ecc_double_bit | ecc_single_bit_storm | dram_retirement | unavailable | recovery | other"),
    ("code", "int?", "XID number (None: one that the driver does not know), or the event's own data where it has any"),
)

CLOCKS = table(
    "clocks",
    "node",
    "This node's monotonic clock against that of the reference node: the exchange of least round trip of each burst.",
    ("time_ns", "int", "this node's clock at the middle of the exchange"),
    ("reference_ns", "int", "the reference node's monotonic clock at that moment, as it told it"),
    ("uncertainty_ns", "int", "half of the round trip: the two can't be farther apart"),
    ("reference_node", "int", "number of the reference node"),
    ("realtime_ns", "int?", "this node's wall clock at the middle of the exchange"),
    ("exchanges", "int", "exchanges of the burst"),
)

SAMPLER_STATE = table(
    "sampler_state",
    "node",
    "What the sampler could not measure and what it cost.",
    ("time_ns", "int", "time"),
    ("field", "str", "host.cpu, process.pss, gpu.0.energy ..., tier.fast | tier.medium | tier.slow, or `self`"),
    ("state", "str", "ok | retry | unsupported | slowed (a tier: its period was doubled)"),
    ("reason", "str", "why"),
    ("self_cpu_ns", "int?", "CPU time of the sampler so far"),
    ("self_rss_bytes", "int?", "resident set of the sampler"),
)
NVML_LOADING = "NVML is being loaded; when nothing follows, its library ended the sampler"
"""Reason of field `gpu` in a row that is on the disk before the library of NVML is touched."""

TABLES: tuple[Table, ...] = (
    STEPS, MICRO_STEPS, SPANS, DEVICE_SPANS, COLLECTIVES, WAITS, GENERATIONS, LEDGER, MEMORY, MODULES, OPERATIONS,
    MEMORY_PARTS, ALLOCATIONS, MEMORY_CURVE, REPEATS, READBACKS, MARKS, FACTS, FAULTS, COST, HOST_SAMPLES,
    CORE_SAMPLES, NETWORK_SAMPLES, PROCESS_SAMPLES, GPUS, GPU_SAMPLES, GPU_STATES, GPU_ACTIVITY, GPU_HEALTH,
    GPU_PROCESSES, GPU_EVENTS, CLOCKS, SAMPLER_STATE,
)  # fmt: skip
BY_NAME: dict[str, Table] = {table.name: table for table in TABLES}

PHASES: tuple[str, ...] = ("data", "forward", "backward", "communication", "optimizer", "other")
"""The parts of a step, in the order they are drawn. They add up to the step exactly, per rank."""
