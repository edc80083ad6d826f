"""Define the pipeline: its components and the artifacts between them, the same for every runner."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass

from tfx import types
from tfx.components.trainer.component import Trainer
from tfx.dsl.components.common.resolver import Resolver
from tfx.orchestration import metadata, pipeline
from tfx.orchestration.data_types import RuntimeParameter
from tfx.proto import infra_validator_pb2, trainer_pb2
from tfx.types import standard_artifacts

from kseg import config as configs
from kseg.config import Config, Tracking
from pipeline.components.data_validator import Examiner
from pipeline.components.evaluator import Evaluator
from pipeline.components.infra_validator import InfraValidator, Requests
from pipeline.components.ingest import Ingest
from pipeline.components.pusher import Pusher
from pipeline.components.serving_validator import Validator
from pipeline.metadata import code_digest, resolvers
from pipeline.metadata.blessing import Rule

TRAINER = "pipeline.components.trainer"


@dataclass(frozen=True)
class Settings:
    """Settings of a pipeline besides kseg's config: paths, the blessing rule, limits, and Beam's flags.

    Attributes:
        config: The config to train.
        root: Directory of artifacts, unfinished trainings and, by default, pushed versions.
        serving: Directory that versions are pushed to.
        fingerprint: Digest of the contents of the source.
        span: Number that replaces {SPAN} in data.directory.
        rule: Conditions of a blessing.
        force: Reason to bless a model against the rule; empty: follow the rule.
        max_unreadable_fraction: Fraction of a split that may be skipped as unreadable.
        images_per_shard: Number of images in a file of records.
        images_per_bundle: Number of images that a Beam worker evaluates at a time.
        drift: Maximum change of the fraction of a class's pixels since the last blessed model's data.
        new_classes: Accept other classes than those of the last blessed model.
        warm_start: Start from the last blessed model that was trained on other examples.
        max_latency_ms: Milliseconds that the served model may take for one image.
        container: Server for TFX's InfraValidator; without one, that component is omitted.
        beam: Flags of the Beam jobs.
    """

    config: Config
    root: str
    serving: str
    fingerprint: str | RuntimeParameter
    span: int = 0
    rule: Rule = Rule()
    force: str = ""
    max_unreadable_fraction: float = 0.01
    images_per_shard: int = 256
    images_per_bundle: int = 64
    drift: float = 0.2
    new_classes: bool = False
    warm_start: bool = False
    max_latency_ms: float = 1000.0
    container: infra_validator_pb2.ServingSpec | None = None
    beam: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Return the pipeline's name, which is the config's name without special characters."""
        return self.config.name.replace(":", "-").replace("/", "-")


def base_model_resolver(ingest: Ingest) -> Resolver:
    """Return the resolver of the last blessed model that was trained on other examples."""
    return Resolver(
        strategy_class=resolvers.LastBlessedOnOtherExamples,
        examples=ingest.outputs["examples"],
        model=types.Channel(type=standard_artifacts.Model),
        model_blessing=types.Channel(type=standard_artifacts.ModelBlessing),
    ).with_id("LastBlessedData")


def baseline_resolver(trainer: Trainer) -> Resolver:
    """Return the resolver of the last blessed model other than the trained candidate."""
    return Resolver(
        strategy_class=resolvers.LastBlessedBefore,
        candidate=trainer.outputs["model"],
        model=types.Channel(type=standard_artifacts.Model),
        model_blessing=types.Channel(type=standard_artifacts.ModelBlessing),
    ).with_id("LastBlessed")


def components(
    settings: Settings,
    make_base_model_resolver: Callable[[Ingest], Resolver] = base_model_resolver,
    make_baseline_resolver: Callable[[Trainer], Resolver] = baseline_resolver,
) -> list:
    """Return the components in the order they run.

    Args:
        settings: Settings of the pipeline.
        make_base_model_resolver: Returns the resolver of the model to start from. An orchestrator may not support the
            strategies of ML Metadata.
        make_baseline_resolver: Returns the resolver of the model that the candidate is compared with.
    """
    data = settings.config.data
    source = {"name": data.name, "directory": data.directory}
    if data.value_range:
        # Without it, the key stays the same, so that sets ingested before stay cached.
        source["value_range"] = data.value_range
    ingest = Ingest(
        data=json.dumps(source),
        splits=json.dumps([data.train_split, data.val_split]),
        fingerprint=settings.fingerprint,
        span=settings.span,
        images_per_shard=settings.images_per_shard,
        max_unreadable_fraction=settings.max_unreadable_fraction,
    )
    # The location of the source must not affect the cache of the training; fingerprint and records represent the data.
    # A tracker must not affect it either, and ML Metadata already tracks the pipeline.
    config = dataclasses.replace(settings.config, data=dataclasses.replace(data, directory=""), tracking=Tracking())
    base = make_base_model_resolver(ingest)
    examiner = Examiner(
        examples=ingest.outputs["examples"],
        baseline_model=base.outputs["model"],
        drift=settings.drift,
        new_classes=settings.new_classes,
    )
    trainer = Trainer(
        run_fn=f"{TRAINER}.run_fn",
        examples=ingest.outputs["examples"],
        schema=examiner.outputs["schema"],
        base_model=base.outputs["model"] if settings.warm_start else None,
        train_args=trainer_pb2.TrainArgs(splits=[data.train_split]),
        eval_args=trainer_pb2.EvalArgs(splits=[data.val_split]),
        custom_config={
            "config": configs.to_json(config),
            "training": f"{settings.root}/training",
            "program": code_digest.code_digest(TRAINER),
        },
    )
    baseline = make_baseline_resolver(trainer)
    evaluator = Evaluator(
        examples=ingest.outputs["examples"],
        model=trainer.outputs["model"],
        baseline_model=baseline.outputs["model"],
        baseline_blessing=baseline.outputs["model_blessing"],
        split=data.val_split,
        rule=json.dumps(dataclasses.asdict(settings.rule)),
        force=settings.force,
        images_per_bundle=settings.images_per_bundle,
    )
    validator = Validator(
        model=trainer.outputs["model"],
        model_blessing=evaluator.outputs["blessing"],
        max_latency_ms=settings.max_latency_ms,
    )
    container_trial, container_blessing = [], None
    if settings.container:
        requests = Requests(examples=ingest.outputs["examples"], split=data.val_split)
        infra_validator = InfraValidator(trainer.outputs["model"], requests.outputs["requests"], settings.container)
        container_trial, container_blessing = [requests, infra_validator], infra_validator.outputs["blessing"]
    pusher = Pusher(
        model=trainer.outputs["model"],
        model_blessing=evaluator.outputs["blessing"],
        infra_blessing=validator.outputs["blessing"],
        container_blessing=container_blessing,
        examples=ingest.outputs["examples"],
        evaluation=evaluator.outputs["evaluation"],
        directory=settings.serving,
    )
    # Both resolvers may be the same object, which must appear only once.
    return list(
        dict.fromkeys([ingest, base, examiner, trainer, baseline, evaluator, validator, *container_trial, pusher])
    )


def create(settings: Settings, database: str, cache: bool = True) -> pipeline.Pipeline:
    """Return the pipeline with its metadata in the SQLite file `database`."""
    return pipeline.Pipeline(
        pipeline_name=settings.name,
        pipeline_root=f"{settings.root}/artifacts",
        components=components(settings),
        enable_cache=cache,
        beam_pipeline_args=list(settings.beam),
        metadata_connection_config=metadata.sqlite_metadata_connection_config(database),
    )
