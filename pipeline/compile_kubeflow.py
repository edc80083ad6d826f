"""Compile the pipeline to a specification for Kubeflow Pipelines and Vertex AI.

    python -m pipeline.compile_kubeflow --config encnet_camvid --set data.directory=/gcs/BUCKET/camvid \\
        --image REGISTRY/kseg:1 --pipeline-root gs://BUCKET/pipeline --out pipeline.json

pipeline/Dockerfile builds the image. This command uploads nothing and reads no data. The contents of the source are
represented by the run's parameter `fingerprint`, which `--print-fingerprint` prints on a machine that has the data.
"""

import argparse
from pathlib import Path

from kseg import cli
from kseg.config import Config
from kseg.errors import UserError
from kseg.system import quiet_start


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    from pipeline import options

    parser = argparse.ArgumentParser(prog=cli.program("pipeline.compile_kubeflow"), description=__doc__.splitlines()[0])
    cli.add_config_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="the .json or .yaml file to write")
    parser.add_argument("--image", metavar="NAME", help="container image of all components")
    parser.add_argument(
        "--pipeline-root",
        metavar="URI",
        help="location of the artifacts: gs://BUCKET/DIR, or a path that is mounted in all containers",
    )
    parser.add_argument("--print-fingerprint", action="store_true", help="only print the fingerprint of the data")
    options.add_arguments(parser)
    return parser


def main(arguments: list[str] | None = None) -> int:
    values = build_parser().parse_args(arguments)
    config = cli.load_config(values)
    if values.print_fingerprint:
        quiet_start.import_tensorflow()
        from pipeline.components import ingest

        config, _ = ingest.locate_span(config)
        print(ingest.source_fingerprint(config.data, (config.data.train_split, config.data.val_split)))
        return 0
    missing = [name for name in ("out", "image", "pipeline_root") if not getattr(values, name)]
    if missing:
        raise UserError(f"missing arguments: {', '.join('--' + name.replace('_', '-') for name in missing)}")
    if not config.data.directory.startswith("/"):
        raise UserError(
            f"data.directory must be the absolute path of the data in the containers, got {config.data.directory!r}"
        )
    quiet_start.import_tensorflow()
    write_specification(values, config)
    print(f"wrote {values.out}")
    return 0


def write_specification(values: argparse.Namespace, config: Config) -> None:
    """Write the specification to `values.out`."""
    from tfx import types
    from tfx.dsl.components.common.resolver import Resolver
    from tfx.dsl.input_resolution.strategies.latest_blessed_model_strategy import LatestBlessedModelStrategy
    from tfx.orchestration import pipeline
    from tfx.orchestration.data_types import RuntimeParameter
    from tfx.orchestration.kubeflow.v2 import kubeflow_v2_dag_runner
    from tfx.proto import infra_validator_pb2
    from tfx.types import standard_artifacts

    from pipeline import definition, options

    settings = options.pipeline_settings(
        values,
        config,
        root=values.pipeline_root,
        fingerprint=RuntimeParameter(name="fingerprint", ptype=str),
        platform=infra_validator_pb2.KubernetesConfig(),
    )
    # Kubeflow supports only this strategy. A repeated run is therefore compared with its own model there.
    resolver = Resolver(
        strategy_class=LatestBlessedModelStrategy,
        model=types.Channel(type=standard_artifacts.Model),
        model_blessing=types.Channel(type=standard_artifacts.ModelBlessing),
    ).with_id("LastBlessed")
    created = pipeline.Pipeline(
        pipeline_name=settings.name.replace("_", "-"),
        pipeline_root=values.pipeline_root,
        components=definition.components(settings, lambda ingest: resolver, lambda trainer: resolver),
        enable_cache=True,
        beam_pipeline_args=list(settings.beam),
    )
    out = values.out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    kubeflow_v2_dag_runner.KubeflowV2DagRunner(
        kubeflow_v2_dag_runner.KubeflowV2DagRunnerConfig(default_image=values.image), str(out.parent), out.name
    ).run(created)


if __name__ == "__main__":
    cli.run(main)
