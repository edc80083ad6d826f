"""The same pipeline as a specification that Kubeflow Pipelines and Vertex AI run.

    python -m pipeline.compile_kubeflow --config encnet_camvid --set data.directory=/gcs/BUCKET/camvid \\
        --image REGISTRY/kseg:1 --pipeline-root gs://BUCKET/pipeline --out pipeline.json

pipeline/Dockerfile makes the image. Nothing is uploaded and no data is read here: what stands for the contents of the
source is the run's parameter `fingerprint`, which `--print-fingerprint`, where the data lies, tells.
"""

import argparse
import os
from pathlib import Path

from kseg import cli
from kseg.config import Config
from kseg.errors import UserError


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    from pipeline import options

    result = argparse.ArgumentParser(prog="python -m pipeline.compile_kubeflow", description=__doc__.splitlines()[0])
    cli.add_config_arguments(result)
    result.add_argument("--out", type=Path, metavar="FILE", help="the .json or .yaml file to write")
    result.add_argument("--image", metavar="NAME", help="the container image of all components")
    result.add_argument("--pipeline-root", metavar="PLACE", help="where artifacts go: gs://BUCKET/DIR, or a path that "
                                                                 "is mounted in every container")
    result.add_argument("--print-fingerprint", action="store_true", help="print the data's fingerprint, and no more")
    options.add_arguments(result)
    return result


def main(arguments: list[str] | None = None) -> int:
    values = parser().parse_args(arguments)
    config = cli.load_config(values)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if values.print_fingerprint:
        from pipeline.components import ingest

        config, _ = ingest.located(config)
        print(ingest.fingerprint(config.data, (config.data.train_split, config.data.val_split)))
        return 0
    missing = [name for name in ("out", "image", "pipeline_root") if not getattr(values, name)]
    if missing:
        raise UserError(f"needed: {', '.join('--' + name.replace('_', '-') for name in missing)}")
    if not config.data.directory.startswith("/"):
        raise UserError(f"data.directory={config.data.directory}: the path of the data in the containers is needed")
    write(values, config)
    print(f"wrote {values.out}")
    return 0


def write(values: argparse.Namespace, config: Config) -> None:
    """Write the specification."""
    from tfx import types
    from tfx.dsl.components.common.resolver import Resolver
    from tfx.dsl.input_resolution.strategies.latest_blessed_model_strategy import LatestBlessedModelStrategy
    from tfx.orchestration import pipeline
    from tfx.orchestration.data_types import RuntimeParameter
    from tfx.orchestration.kubeflow.v2 import kubeflow_v2_dag_runner
    from tfx.proto import infra_validator_pb2
    from tfx.types import standard_artifacts

    from pipeline import definition, options

    settings = options.settings(values, config, root=values.pipeline_root,
                                  fingerprint=RuntimeParameter(name="fingerprint", ptype=str),
                                  platform=infra_validator_pb2.KubernetesConfig())
    # The one strategy that Kubeflow knows: there a run that is made again is compared with itself.
    blessed = Resolver(strategy_class=LatestBlessedModelStrategy, model=types.Channel(type=standard_artifacts.Model),
                       model_blessing=types.Channel(type=standard_artifacts.ModelBlessing)).with_id("LastBlessed")
    created = pipeline.Pipeline(
        pipeline_name=settings.name.replace("_", "-"), pipeline_root=values.pipeline_root,
        components=definition.components(settings, lambda ingest: blessed, lambda trainer: blessed),
        enable_cache=True, beam_pipeline_args=list(settings.beam))
    out = values.out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    kubeflow_v2_dag_runner.KubeflowV2DagRunner(
        kubeflow_v2_dag_runner.KubeflowV2DagRunnerConfig(default_image=values.image), str(out.parent),
        out.name).run(created)


if __name__ == "__main__":
    cli.run(main)
