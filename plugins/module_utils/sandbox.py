"""The parts of the unit's sandbox that an application may have opened (`app_sandbox`): each with what it opens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

# Name of the unit's option -> each value that it may get -> what that opens.
RELAXATIONS: dict[str, dict[str, str]] = {
    "MemoryDenyWriteExecute": {
        "false": "the application may run code that it wrote to memory, as numba, PyPy and other such compilers do",
    },
    "ProcSubset": {
        "all": "the application reads all of /proc, such as /proc/meminfo, /proc/stat and /proc/net, as psutil does",
    },
    "ProtectProc": {
        "default": "the application sees the processes of other accounts in /proc",
    },
    "PrivateUsers": {
        "false": "the application sees the host's accounts as the owners of files and processes",
    },
    "PrivateDevices": {
        "false": "the application sees the host's devices in /dev, and opens them only with DevicePolicy: auto",
    },
    "DevicePolicy": {
        "auto": "the application opens each device in /dev that its account may open, if PrivateDevices is false",
    },
    "ProtectHome": {
        "read-only": "the application reads what every account may read in /home and /root",
    },
    "RestrictNamespaces": {
        "false": "the application may create namespaces, as the sandbox of a browser (Chromium) does",
    },
    "RestrictRealtime": {
        "false": "the application may ask for a real-time priority, if SystemCallFilter has @resources",
    },
    "RestrictAddressFamilies": {
        "AF_NETLINK": "the application reads network interfaces and routes from the kernel, as psutil and ifaddr do",
        "AF_ALG": "the application may use the kernel's cryptography",
        "AF_CAN": "the application may use a CAN bus",
        "AF_VSOCK": "the application may talk to a virtual machine of its host, such as a Nitro enclave",
    },
    "SystemCallFilter": {
        "@resources": "the application may change its priority, processors, memory policy and limits, as OpenMP does",
        "@chown": "the application may give its files to a group of its account, as shutil and tarfile try to",
        "@debug": "the application may trace its own processes, as a profiler does",
        "@mount": "the application may mount in namespaces of its own, as the sandbox of a browser (Chromium) does",
        "@pkey": "the application may use memory protection keys",
    },
}
# Their values are added to those of the unit; another option's value takes the place of the unit's.
ADDED = ("RestrictAddressFamilies", "SystemCallFilter")


def values_of(value: object) -> list[str]:
    """Return the values that an option gets, as a unit has them."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return [str(one).lower() if isinstance(one, bool) else str(one) for one in values]


def findings(sandbox: object) -> Iterator[str]:
    """Yield what is wrong with a value of `app_sandbox`, and how to fix it."""
    if not isinstance(sandbox, Mapping):
        yield "is no mapping of names to values. Fix: write it as `app_sandbox: {MemoryDenyWriteExecute: false}`"
        return
    for name, value in sandbox.items():
        known = RELAXATIONS.get(str(name))
        if known is None:
            yield f"{name} cannot be opened. Fix: remove it, or use one of {', '.join(RELAXATIONS)}"
            continue
        values, few = values_of(value), "some of " if name in ADDED else ""
        wrong = [one for one in values if one not in known]
        if wrong or not values or (len(values) > 1 and name not in ADDED):
            refused = ", ".join(wrong or values) or "an empty list"
            yield f"{name} does not take {refused}. Fix: set {few}{', '.join(known)}, or remove it"


def opened(sandbox: Mapping[str, object]) -> dict[str, str]:
    """Return each assignment of a unit that opens something, with what it opens."""
    return {
        f"{name}={value}": RELAXATIONS.get(name, {}).get(value, "unknown to this version of Waffle Iron")
        for name in sorted(sandbox)
        for value in values_of(sandbox[name])
    }
