"""What the driver's XID numbers mean and what to do, after NVIDIA's Xid catalog.

Source: docs.nvidia.com/deploy/xid-errors (catalog for Ampere and later; for the numbers marked there as unused today
its archive for older GPUs). A number is the same in all driver versions; the words here are ours.
"""

from dataclasses import dataclass
from typing import Literal

Concern = Literal["note", "job", "gpu"]
"""note: nothing to do by itself. job: the program on the GPU failed, the GPU is well. gpu: the GPU needs attention."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Xid:
    """An XID in words."""

    meaning: str
    action: str
    concern: Concern

    @property
    def sentence(self) -> str:
        """`GPU memory page fault: an address ... Debug the job: ...`"""
        return f"{self.meaning} {self.action}"


_SANITIZER = "Run the job under compute-sanitizer memcheck, which names the line."
_RESTART = "Start the job again; when it comes back on this GPU, ask the GPU's vendor."
_RESET = "Reset the GPU (nvidia-smi --gpu-reset, nothing running on it) or reboot; when it comes back, ask its vendor."
_LINK = "Look at nvidia-smi nvlink and at what the GPU at the other end reports; reset the GPU; then ask the vendor."


def _note(meaning: str, action: str = "Nothing to do by itself; look at the XIDs beside it.") -> Xid:
    return Xid(meaning=meaning, action=action, concern="note")


def _job(meaning: str, action: str = _RESTART) -> Xid:
    return Xid(meaning=meaning, action=action, concern="job")


def _gpu(meaning: str, action: str = _RESET) -> Xid:
    return Xid(meaning=meaning, action=action, concern="gpu")


_COPY_ENGINE = _job("A copy engine of the GPU reported an error.")
_VIDEO = _job("A video or image engine of the GPU reported an error.")
_OLDER = "Only GPUs before Ampere report it. "

XIDS: dict[int, Xid] = {
    8: _job("The GPU stopped processing: a channel made no progress in time."),
    11: _job("Invalid or corrupted command stream to the GPU.", "Check the job and its CUDA version."),
    13: _job("Exception in a kernel: most often an access beyond the end of an array, or an illegal instruction.",
             _SANITIZER),
    25: _job("Invalid or illegal command stream to the GPU.", "Check the job and its CUDA version."),
    31: _job("GPU memory page fault: a kernel used an illegal address.", _SANITIZER),
    32: _job("Invalid or corrupted command stream: seldom the job's fault, rather the quality of the PCIe link.",
             "Start the job again; when it comes back, have the PCIe slot and riser of the GPU checked."),
    37: _note("Driver firmware error: a method that the firmware lacks.", "Check the job and its CUDA version."),
    38: _note("Driver firmware error: its watchdog ran out.", "Nothing at once; when it comes back, ask the vendor."),
    39: _COPY_ENGINE, 40: _COPY_ENGINE, 41: _COPY_ENGINE,
    43: _job("The job on the GPU ran into a fault of its own and was ended; the GPU is healthy.",
             "Look for the job's own error: it comes from the program, not from the driver."),
    44: _note("Fault while the GPU changed from one program to another."),
    45: _note("The driver took a program off the GPU: it was killed (Ctrl-C, SIGKILL), or another error came before.",
              "Alone it is only the end of a program; else follow the XID that came before."),
    46: _gpu("The GPU stopped processing."),
    48: _gpu("Double-bit ECC error: GPU memory that could not be corrected.",
             "Results of the job are lost. Reset the GPU or reboot before it is used again, and look for XID 63 or 64 "
             "after it; with nvidia-smi -q -d ECC,ROW_REMAPPER see whether it has to be replaced."),
    54: _gpu("Auxiliary power is not connected to the GPU board.", "Have the power cables checked."),
    56: _note(f"{_OLDER}Error in the display engine."),
    57: _gpu(f"{_OLDER}Error programming the video memory interface.", _RESET),
    58: _gpu(f"{_OLDER}Unstable video memory interface.", _RESET),
    60: _VIDEO,
    61: _gpu(f"{_OLDER}Breakpoint or warning of the GPU's internal micro-controller.", _RESET),
    62: _gpu("The GPU's internal micro-controller halted."),
    63: _note("A row of GPU memory is set aside for replacement after an ECC error (before Ampere: a page retired).",
              "The replacement takes effect at the next reset of the GPU; until then the job may run on."),
    64: _gpu("Replacing a row of GPU memory (before Ampere: retiring a page) failed.",
             "Reset the GPU now; when it comes back it has to be replaced."),
    66: _note("Illegal access by the driver.", "Check the versions of driver and CUDA."),
    67: _note("Illegal access by the driver.", "Check the versions of driver and CUDA."),
    68: _VIDEO,
    69: _job("Error of a graphics or compute class in a kernel's launch.", "Check the job and its CUDA version."),
    70: _COPY_ENGINE, 71: _COPY_ENGINE, 72: _COPY_ENGINE,
    74: _gpu("Error on an NVLink to another GPU or to the switch; the other end may be what failed.", _LINK),
    75: _COPY_ENGINE, 76: _COPY_ENGINE, 77: _COPY_ENGINE,
    78: _note("A virtual GPU could not be started.", "Update driver and software of the virtual GPU."),
    79: _gpu("The GPU has fallen off the bus: it does not answer over PCIe.",
             "Reboot the machine (a power cycle is best), look for PCIe errors in dmesg and have seat, riser and power "
             "of the GPU checked."),
    80: _job("Corrupted data sent to the GPU.", "Start the job again; check the job and its CUDA version."),
    82: _VIDEO, 83: _VIDEO, 84: _VIDEO, 85: _COPY_ENGINE, 86: _VIDEO, 88: _VIDEO, 89: _VIDEO,
    92: _gpu("High rate of single-bit ECC errors; each was corrected.",
             "The job may run on; have the GPU diagnosed (dcgmi diag) when it keeps coming."),
    93: _note("The wear limit of the GPU's InfoROM was reached; not fatal.", "Tell who looks after the machine."),
    94: _job("Memory error that was contained: only the program that met it is ended.",
             "Start the job again; reset the GPU when convenient, so that the bad row is replaced."),
    95: _gpu("Memory error that was not contained: all programs on the GPU are affected.",
             "Reset the GPU before anything runs on it again."),
    109: _gpu("The GPU could not change from one program to another in time."),
    110: _gpu("Security fault of the GPU.", "Undo recent changes of hardware and power-cycle the machine."),
    119: _gpu("The GPU's system processor (GSP) did not answer the driver in time.",
              "Reset the GPU or power-cycle the node; when it comes back, update the driver."),
    120: _gpu("Error in the firmware on the GPU's system processor (GSP).",
              "Reset the GPU or power-cycle the node; when it comes back, update the driver."),
    121: _note("Errors on the link between GPU and Grace CPU (C2C), which were corrected.",
               "Reset the GPU at the next maintenance, so that the link is trained anew."),
    136: _gpu("Training of an NVLink failed.", _LINK),
    137: _job("Illegal access to another GPU's memory over NVLink.", _SANITIZER),
    140: _gpu("Uncorrectable error in GPU memory whose row could not be set aside."),
    141: _note("Error on CUDA's fast path."),
    143: _gpu("The GPU could not be initialised."),
    **dict.fromkeys(range(144, 151), _gpu("Error on an NVLink (fifth generation).", _LINK)),
    154: _note("The driver changed what it recommends for this GPU (nothing, reset, reboot), because of another XID.",
               "See the XIDs beside it; nvidia-smi -q shows the recommendation as GPU Recovery Action."),
    155: _note("An NVLink went down by software's wish."),
    156: _gpu("A part of the GPU was retired.", _RESET),
    157: _gpu("A part of the GPU could not be retired: no spare is left.", "The job may run on and meet it again."),
    158: _gpu("The GPU ran into a fatal timeout."),
    171: _note("Details on XID 48: the error was in the GPU's DRAM."),
    172: _note("Details on XID 48: the error was in the GPU's SRAM."),
}  # fmt: skip


def xid_of(code: int | None) -> Xid:
    """The meaning of an XID; of one that is not in the table, that it is not."""
    if code in XIDS:
        return XIDS[code]
    number = "An XID without a number" if code is None else f"XID {code}"
    return Xid(
        meaning=f"{number} is not in agprof's table.",
        action="Look it up in NVIDIA's Xid catalog (docs.nvidia.com/deploy/xid-errors), and in dmesg for its line.",
        concern="gpu",
    )


KINDS: dict[str, str] = {
    "ecc_double_bit": "Double-bit ECC error: GPU memory that could not be corrected. See XID 48.",
    "ecc_single_bit_storm": "Storm of single-bit ECC errors; each was corrected. See XID 92.",
    "dram_retirement": "A row of GPU memory was set aside for replacement. See XIDs 63 and 64.",
    "unavailable": "The GPU became unavailable. Reset it, or reboot the machine.",
    "recovery": "The driver changed what it recommends for this GPU. See XID 154.",
}


def event_in_words(kind: str, code: int | None) -> str:
    """Meaning of a row of `gpu_events`, with what to do."""
    if kind == "xid":
        return xid_of(code).sentence
    return KINDS.get(kind, f"An event of the driver of kind {kind[:60]!r}, which agprof does not know.")
