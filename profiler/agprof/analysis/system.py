"""GPU and host: the sampler's curves, and what they mean in the steady part of the run."""

from collections.abc import Sequence
from dataclasses import replace

from agprof.analysis.gpu_mapping import map_gpus
from agprof.analysis.gpu_memory import reconcile, tenants
from agprof.analysis.system_curves import system_curves
from agprof.analysis.system_events import gpu_events
from agprof.analysis.system_figures import system_figures, system_sentence, used_gpus
from agprof.analysis.system_gpus import gpu_rows
from agprof.analysis.system_network import interface_rows
from agprof.analysis.system_samples import Samples, steady_window
from agprof.analysis.system_states import not_measured, sampler_gaps
from agprof.analysis.system_throttles import throttle_spans
from agprof.analysis.view import View
from agprof.model.energy_answers import EnergyAnswer
from agprof.model.system_answers import GpuMapping, SystemAnswer


def analyse_system(view: View, mapping: Sequence[GpuMapping] | None = None) -> SystemAnswer:
    """The system section. `mapping` is `map_gpus(view)`, when it is known already."""
    mapping = map_gpus(view) if mapping is None else mapping
    window = steady_window(view)
    tables = Samples(view)
    gpus = gpu_rows(tables, window, mapping)
    used = used_gpus(gpus, mapping)
    figures = system_figures(tables, window, used)
    curves, cores, decimation = system_curves(tables)
    throttles, joined = throttle_spans(tables)
    return SystemAnswer(
        sentence=system_sentence(tables, window, used, figures),
        curves=curves,
        figures=figures,
        decimation=" ".join(filter(None, (decimation, joined))) or None,
        gpus=gpus,
        mapping=tuple(mapping),
        throttles=throttles,
        memory=reconcile(view, mapping),
        tenants=tenants(view),
        events=gpu_events(view),
        interfaces=interface_rows(view, window),
        cores=cores,
        not_measured=not_measured(view),
        gaps=sampler_gaps(view),
    )


def with_energy(system: SystemAnswer, energy: EnergyAnswer | None) -> SystemAnswer:
    """The same with each GPU's energy over the run, as the section on energy has it."""
    runs = {(gpu.node, gpu.gpu): gpu.run for gpu in energy.gpus} if energy is not None else {}
    gpus = tuple(replace(gpu, energy=runs.get((gpu.node, gpu.gpu), gpu.energy)) for gpu in system.gpus)
    return replace(system, gpus=gpus)
