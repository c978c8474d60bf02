"""The public surface, as a literal list: a change of it is a visible difference."""

import subprocess
import sys
from pathlib import Path

import mtl_benchmarks


def test_public_names() -> None:
    assert sorted(mtl_benchmarks.__all__) == [
        "Baseline",
        "Batches",
        "Benchmark",
        "Best",
        "CTR",
        "CelebA",
        "Choice",
        "CityScapes",
        "Clip",
        "Collection",
        "Constant",
        "Cosine",
        "DataSource",
        "Digits",
        "EarlyStopping",
        "EvaluationSeen",
        "Last",
        "LoadedBatches",
        "Loading",
        "MT10",
        "MeanOfLast",
        "Metric",
        "MovieLens",
        "NYUv2",
        "Observer",
        "ObserverError",
        "OptimizerChoice",
        "Plateau",
        "Progress",
        "PublishedTable",
        "PublishedValue",
        "QM9",
        "ReadsFiles",
        "Rooms",
        "RunConfig",
        "RunDirectory",
        "RunResult",
        "RunStart",
        "Span",
        "StepDecay",
        "StepSeen",
        "Streets",
        "Toy",
        "Training",
        "Yeast",
        "delta_m",
        "load_result",
        "mean_rank",
        "own_baselines",
        "printed_baselines",
        "published_table",
        "published_values",
        "ranks",
        "run",
        "run_all",
        "single_task_configs",
    ]
    assert all(hasattr(mtl_benchmarks, name) for name in mtl_benchmarks.__all__)


def test_is_typed() -> None:
    assert (Path(mtl_benchmarks.__file__).parent / "py.typed").is_file()


def test_what_is_slow_to_import_waits_until_it_is_needed() -> None:
    """Sharded tensors alone bring a second of imports with them (sympy among these)."""
    slow = ["torch.distributed.tensor", "sympy", "peft", "matplotlib", "torch_geometric"]
    program = f"import sys; import mtl_benchmarks.cli; print([name for name in {slow} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
