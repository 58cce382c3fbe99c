"""What the return codes of NVML mean to the sampler.

Three kinds besides "try again later": a value that this device, driver or user will not have (asked no more), a device
that is gone (its rows are gaps until it is back), and a library that is gone (everything is a gap until it could be
initialised again).
"""

from typing import Any

UNSUPPORTED = frozenset({
    "NVML_ERROR_NOT_SUPPORTED", "NVML_ERROR_FUNCTION_NOT_FOUND", "NVML_ERROR_NO_PERMISSION",
    "NVML_ERROR_INVALID_ARGUMENT", "NVML_ERROR_ARGUMENT_VERSION_MISMATCH", "NVML_ERROR_DEPRECATED",
})  # fmt: skip
LIBRARY_LOST = frozenset({
    "NVML_ERROR_UNINITIALIZED", "NVML_ERROR_DRIVER_NOT_LOADED", "NVML_ERROR_LIB_RM_VERSION_MISMATCH",
    "NVML_ERROR_LIBRARY_NOT_FOUND",
})  # fmt: skip
DEVICE_LOST = frozenset({"NVML_ERROR_GPU_IS_LOST", "NVML_ERROR_RESET_REQUIRED"})
UNKNOWN = "NVML_ERROR_UNKNOWN"
"""As the answer of a call: the device can't be reached (a container lost its device files). Of one field: try again."""
MISSING = "NVML_ERROR_FUNCTION_NOT_FOUND"


MEANINGS = {
    "NVML_ERROR_NOT_SUPPORTED": "not supported by this GPU or driver",
    "NVML_ERROR_NO_PERMISSION": "not permitted to this user or container",
    MISSING: "the driver (or nvidia-ml-py) is older than this call",
    "NVML_ERROR_DEPRECATED": "the driver has dropped this call",
    "NVML_ERROR_LIB_RM_VERSION_MISMATCH": "the driver was replaced: its library and its kernel module differ",
    "NVML_ERROR_DRIVER_NOT_LOADED": "the driver is not loaded",
    "NVML_ERROR_GPU_IS_LOST": "the GPU does not answer any more",
    "NVML_ERROR_RESET_REQUIRED": "the GPU has to be reset",
    UNKNOWN: "unknown error: in a container, its access to the GPU may be gone",
}
"""What to tell a reader, where NVML's own words say less."""


class NoNvmlError(Exception):
    """NVML can't be used on this node; the message says why."""


class LibraryLostError(Exception):
    """NVML as a whole does not answer any more."""


class DeviceLostError(Exception):
    """One GPU does not answer any more."""


class Codes:
    """Names of the return codes, as the module `nvml` numbers them."""

    def __init__(self, nvml: Any) -> None:
        self._error_type = nvml.NVMLError
        names = (name for name in dir(nvml) if name.startswith("NVML_ERROR_"))
        self._names: dict[int, str] = {getattr(nvml, name): name for name in names}

    def name(self, code: int) -> str:
        return self._names.get(code, f"NVML error {code}")

    def meaning(self, name: str) -> str:
        """In words, with the name to look up."""
        return f"{MEANINGS[name]} ({name})" if name in MEANINGS else name

    def of(self, error: Exception) -> str | None:
        """Name of the code behind an exception of the binding; None for an exception that is none of NVML's."""
        if isinstance(error, self._error_type):
            return self.name(getattr(error, "value", -1))
        # The binding is older than the call.
        return MISSING if isinstance(error, AttributeError) else None
