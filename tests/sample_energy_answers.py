"""Hand-made answers on energy: counters of eight GPUs, one that had to be integrated, and nothing to price with."""

from dataclasses import replace

from agprof.model.energy_answers import EnergyAnswer, GpuEnergy, PhaseEnergy
from sample_figures import MS, figure, missing

_METHOD = "energy counter, last minus first; ± one of its periods at either end"
SHORT = "no stretch of it lasts 5 s"


def energy_answer(gpus: int = 8) -> EnergyAnswer:
    """The last GPU has no counter, and the one before it began anew once; the GPU after all is nobody's."""
    rows = tuple(_gpu(gpu, gpus) for gpu in range(gpus))
    joules = 12_800.0 * gpus
    return EnergyAnswer(
        sentence=f"{gpus} GPUs used 102 kJ [101, 104], 28.4 Wh: 1.93 kJ a step and 121 J a sample.",
        scope=f"{gpus} GPUs",
        gpus=rows,
        host=((0, missing("J", "RAPL can be read by root only")),),
        run=figure(joules, "J", n=gpus, low=joules * 0.99, high=joules * 1.02, method=_METHOD),
        steady=figure(joules * 0.9, "J", n=gpus, low=joules * 0.89, high=joules * 0.92, method=_METHOD),
        per_step=figure(
            1_930.0, "J", "modelled", n=46, low=1_910.0, high=1_970.0, method="steady window over its steps"
        ),
        per_sample=figure(121.0, "J", "modelled", n=46, low=119.0, high=123.0),
        per_token=figure(0.236, "J", "modelled", n=46),
        tokens_per_joule=figure(4.24, "tokens/J", "modelled", n=46),
        kwh=figure(joules / 3.6e6, "kWh", n=gpus),
        phases=(
            _phase("warm-up", 1_400, 0, None),
            _phase("steady steps", 17_600, 0, joules * 0.9),
            _phase("checkpoint", 0, 2_100, None),
        ),
        cost=figure(0.0085, "EUR", "declared", n=1, method="kWh x energy.price_per_kwh"),
        currency="EUR",
        co2=figure(10.8, "g", "declared", n=1, method="kWh x energy.co2_g_per_kwh"),
        declared="0.30 EUR and 380 g of CO2 a kWh, as `energy.price_per_kwh` and `energy.co2_g_per_kwh` say "
        "(source given: contract of 2026).",
    )


def _gpu(gpu: int, gpus: int) -> GpuEnergy:
    last = gpu == gpus - 1 and gpus > 1
    return GpuEnergy(
        node=0,
        gpu=gpu,
        name="NVIDIA H100 80GB HBM3",
        run=figure(12_800.0, "J", n=100, low=12_600.0, high=13_000.0, method=_METHOD),
        steady=figure(11_500.0, "J", n=90, low=11_400.0, high=11_700.0, method=_METHOD),
        mean_power=figure(641.0, "W", n=90),
        idle_power=figure(71.0, "W", n=1) if gpu else missing("W", "it was busy before the first step"),
        method="integral of instant power" if last else "counter and integral" if gpu == gpus - 2 else "counter",
        resets=int(gpu == gpus - 2),
        in_run=True,
    )


def _phase(phase: str, counted_ms: int, left_out_ms: int, joules: float | None) -> PhaseEnergy:
    return PhaseEnergy(
        phase=phase,
        duration_ns=counted_ms * MS if joules else 0,
        left_out_ns=left_out_ms * MS if joules else (left_out_ms or counted_ms) * MS,
        energy=figure(joules, "J", n=1) if joules else missing("J", SHORT),
        mean_power=figure(5_120.0, "W", n=1) if joules else missing("W", SHORT),
    )


def unpriced_energy() -> EnergyAnswer:
    """One GPU, no counter, no steady step, no price."""
    found = energy_answer(1)
    none = "no steady step"
    return replace(
        found,
        sentence="The GPU used 12.8 kJ; without a steady step there is no figure per step.",
        scope="1 GPU",
        steady=missing("J", none),
        per_step=missing("J", none),
        per_sample=missing("J", none),
        per_token=missing("J", none),
        tokens_per_joule=missing("tokens/J", none),
        phases=(),
        host=(),
        cost=missing("EUR", "no price is given: set energy.price_per_kwh", "declared"),
        co2=missing("g", "no intensity is given: set energy.co2_g_per_kwh", "declared"),
        declared="",
    )


def hostile_energy(name: str) -> EnergyAnswer:
    found = energy_answer(2)
    return replace(
        found,
        sentence=name,
        scope=name,
        currency=name,
        declared=name,
        gpus=tuple(replace(row, name=name) for row in found.gpus),
        phases=tuple(replace(row, phase=name) for row in found.phases),
    )
