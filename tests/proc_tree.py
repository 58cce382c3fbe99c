"""Fabricated /proc and /sys trees: the files that the sampler reads, with values that tests set."""

from collections.abc import Mapping
from pathlib import Path


class ProcTree:
    """Files below `root`. Files are written in place, as a descriptor of /proc that is kept open sees new values."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/stat", "cpu  0 0 0 0 0 0 0 0 0 0\ncpu0 0 0 0 0 0 0 0 0 0 0\nctxt 1\n")
        self.write(
            "proc/meminfo",
            "MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 400 kB\nSwapTotal: 20 kB\nSwapFree: 13 kB\n",
        )
        self.write("proc/vmstat", "nr_free_pages 5\npswpin 0\npswpout 0\n")
        self.write("proc/loadavg", "0.50 0.40 0.30 1/100 999\n")
        self.write("proc/diskstats", "")
        self.interfaces({"lo": (0, 0)})

    def write(self, path: str, text: str) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def cpu(self, *rows: tuple[int, ...]) -> None:
        """Ticks of user nice system idle iowait irq softirq steal guest guest_nice; the first row is their sum."""
        lines = [f"cpu{'  ' if n == 0 else f'{n - 1} '}{' '.join(map(str, row))}" for n, row in enumerate(rows)]
        self.write("proc/stat", "\n".join([*lines, "intr 9 9 9", "ctxt 5", ""]))

    def interfaces(self, counters: Mapping[str, tuple[int, ...]]) -> None:
        """Name -> (sent bytes, received bytes[, errors of each of the four kinds])."""
        lines = ["Inter-|   Receive | Transmit", " face |bytes packets errs drop | bytes packets errs drop"]
        for name, values in counters.items():
            sent, received = values[:2]
            errors = (*values[2:], 0, 0, 0, 0)[:4]
            got = f"{received} 1 {errors[0]} {errors[1]} 7 7 7 7"
            lines.append(f"{name:>6}: {got} {sent} 1 {errors[2]} {errors[3]} 7 7 7 7")
        self.write("proc/net/dev", "\n".join([*lines, ""]))

    def interface(
        self, name: str, *, hardware: bool = True, type: int = 1, flags: str = "0x1003", state: str = "up",
        speed: str | None = None,
    ) -> None:  # fmt: skip
        """What /sys says of an interface."""
        folder = f"sys/class/net/{name}"
        self.write(f"{folder}/flags", f"{flags}\n")
        self.write(f"{folder}/type", f"{type}\n")
        self.write(f"{folder}/operstate", f"{state}\n")
        if hardware:
            self.write(f"{folder}/device/vendor", "0x15b3\n")
        if speed is not None:
            self.write(f"{folder}/speed", f"{speed}\n")

    def disks(self, sectors: Mapping[str, tuple[int, int]], devices: tuple[str, ...]) -> None:
        """Name -> (sectors read, sectors written); which of them are devices."""
        lines = [
            f"   8 0 {name} 1 0 {read} 5 1 0 {written} 5 0 5 5 0 0 0 0" for name, (read, written) in sectors.items()
        ]
        self.write("proc/diskstats", "\n".join([*lines, ""]))
        for name in sectors:
            (self.root / "sys/block" / name / ("device" if name in devices else "")).mkdir(parents=True, exist_ok=True)

    def pressure(self, name: str, some_us: int, full_us: int, folder: str = "proc/pressure", suffix: str = "") -> None:
        text = "some avg10=9.99 avg60=9.99 avg300=9.99 total={}\nfull avg10=9.99 avg60=9.99 avg300=9.99 total={}\n"
        self.write(f"{folder}/{name}{suffix}", text.format(some_us, full_us))

    def rapl(self, zone: str, name: str, energy_uj: int, range_uj: int = 262_143_328_850) -> None:
        folder = f"sys/class/powercap/{zone}"
        self.write(f"{folder}/name", f"{name}\n")
        self.write(f"{folder}/energy_uj", f"{energy_uj}\n")
        self.write(f"{folder}/max_energy_range_uj", f"{range_uj}\n")

    def port(self, device: str, port: int, sent_words: int, received_words: int, **others: object) -> None:
        """An RDMA port. `others`: state, rate, link_layer, rcv_errors, xmit_discards."""
        folder = f"sys/class/infiniband/{device}/ports/{port}"
        self.write(f"{folder}/state", f"{others.get('state', '4: ACTIVE')}\n")
        self.write(f"{folder}/rate", f"{others.get('rate', '400 Gb/sec (4X NDR)')}\n")
        self.write(f"{folder}/link_layer", f"{others.get('link_layer', 'InfiniBand')}\n")
        self.write(f"{folder}/counters/port_xmit_data", f"{sent_words}\n")
        self.write(f"{folder}/counters/port_rcv_data", f"{received_words}\n")
        self.write(f"{folder}/counters/port_rcv_errors", f"{others.get('rcv_errors', 0)}\n")
        self.write(f"{folder}/counters/port_xmit_discards", f"{others.get('xmit_discards', 0)}\n")


class FakeProcess:
    """One process below a ProcTree's /proc. Set what it has used, then `save`."""

    def __init__(self, tree: ProcTree, pid: int, parent: int = 1, started_s: float = 0.0, name: str = "python") -> None:
        self.tree, self.pid, self.parent, self.name = tree, pid, parent, name
        self.start_ticks = int(started_s * 100)
        self.state = "S"
        self.cpu_ticks, self.threads, self.rss_kib = 150, 3, 100
        self.read, self.written = 0, 0
        self.voluntary, self.involuntary, self.wait_ns = 0, 0, 0
        self.pss_kib = 50
        self.command = f"python\0job-{pid}.py\0"
        self.environment: dict[str, str] = {}
        self.save()

    def save(self) -> None:
        folder = f"proc/{self.pid}"
        user, system = self.cpu_ticks - 50, 50
        self.tree.write(
            f"{folder}/stat",
            f"{self.pid} ({self.name}) {self.state} {self.parent} 1 1 0 -1 0 9 9 9 9 {user} {system} 8 8 20 0 "
            f"{self.threads} 0 {self.start_ticks} 5000000 7 18446744073709551615 1 1 1\n",
        )
        self.tree.write(
            f"{folder}/status",
            f"Name:\t{self.name}\nVmHWM:\t  999 kB\nVmRSS:\t  {self.rss_kib} kB\nThreads:\t{self.threads}\n"
            f"voluntary_ctxt_switches:\t{self.voluntary}\nnonvoluntary_ctxt_switches:\t{self.involuntary}\n",
        )
        io = f"rchar: 1\nwchar: 1\nread_bytes: {self.read}\nwrite_bytes: {self.written}\ncancelled_write_bytes: 5\n"
        self.tree.write(f"{folder}/io", io)
        self.tree.write(f"{folder}/schedstat", f"123456 {self.wait_ns} 77\n")
        self.tree.write(f"{folder}/smaps_rollup", f"00-ff ---p 0 0 0 [rollup]\nRss: 9 kB\nPss:   {self.pss_kib} kB\n")
        self.tree.write(f"{folder}/cmdline", self.command)
        self.tree.write(f"{folder}/environ", "".join(f"{key}={value}\0" for key, value in self.environment.items()))

    def end(self) -> None:
        """The files go; a descriptor that is still open finds nothing more."""
        folder = self.tree.root / "proc" / str(self.pid)
        for file in folder.iterdir():
            file.write_text("")
            file.unlink()
        folder.rmdir()
