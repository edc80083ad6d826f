"""Where Beam steps run: `--beam runner=NAME KEY=VALUE ...` as the flags that Beam reads."""

from collections.abc import Sequence

from kseg.errors import ConfigError, unknown

# DirectRunner would first try to download a program of its own.
RUNNERS = {
    "local": "apache_beam.runners.portability.fn_api_runner.FnApiRunner",
    "dask": "apache_beam.runners.dask.dask_runner.DaskRunner",
    "flink": "FlinkRunner",
    "spark": "SparkRunner",
    "dataflow": "DataflowRunner",
}


def flags(values: Sequence[str]) -> tuple[str, ...]:
    """Return Beam's flags of KEY=VALUE texts, of which `runner` is one of RUNNERS; raises ConfigError for others.

    All other keys are Beam's own, such as dask_client_address, flink_master, spark_master_url, or project and region.
    """
    pairs = [value.partition("=") for value in values]
    for key, equals, value in pairs:
        if not (key and equals and value):
            raise ConfigError(f"--beam {key}{equals}{value}: KEY=VALUE is needed")
    chosen = dict((key, value) for key, _, value in pairs)
    name = chosen.pop("runner", "local")
    if name not in RUNNERS:
        raise ConfigError(unknown("runner", name, RUNNERS))
    if name == "dask" and not {"dask_npartitions", "dask_partition_size"} & chosen.keys():
        # Else 128 elements, which are parts of a data set here, would go to one worker.
        chosen["dask_partition_size"] = "1"
    return (f"--runner={RUNNERS[name]}", *(f"--{key}={value}" for key, value in chosen.items()))
