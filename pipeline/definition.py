"""The pipeline itself: its components and what flows between them, the same for every runner."""

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
from kseg.config import Config
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
    """What a pipeline is made of beside kseg's config: paths, the rule of blessing and how Beam runs."""

    config: Config
    # Where artifacts, unfinished trainings and, by default, pushed versions lie.
    root: str
    serving: str
    # Stands for the contents of the source.
    fingerprint: str | RuntimeParameter
    span: int = 0
    rule: Rule = Rule()
    force: str = ""
    largest_unreadable_share: float = 0.01
    images_per_shard: int = 256
    images_per_bundle: int = 64
    # Share of the pixels by which a class may have moved since the last blessed model's data.
    drift: float = 0.2
    new_classes: bool = False
    # Start from the last blessed model that was trained on other examples.
    warm_start: bool = False
    # Milliseconds that the served model may take for one picture.
    budget: float = 1000.0
    # What TFX's InfraValidator starts, where it shall judge as well.
    container: infra_validator_pb2.ServingSpec | None = None
    beam: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The pipeline's name: the config's."""
        return self.config.name.replace(":", "-").replace("/", "-")


def earlier_models(ingest: Ingest) -> Resolver:
    """Return what finds the last blessed model that was trained on other examples."""
    return Resolver(strategy_class=resolvers.LastBlessedOnOtherExamples, examples=ingest.outputs["examples"],
                    model=types.Channel(type=standard_artifacts.Model),
                    model_blessing=types.Channel(type=standard_artifacts.ModelBlessing)).with_id("LastBlessedData")


def other_models(trainer: Trainer) -> Resolver:
    """Return what finds the last blessed model that is not the one just trained."""
    return Resolver(strategy_class=resolvers.LastBlessedBefore, candidate=trainer.outputs["model"],
                    model=types.Channel(type=standard_artifacts.Model),
                    model_blessing=types.Channel(type=standard_artifacts.ModelBlessing)).with_id("LastBlessed")


def components(settings: Settings, earlier: Callable[[Ingest], Resolver] = earlier_models,
               others: Callable[[Trainer], Resolver] = other_models) -> list:
    """Return the components in the order they run.

    `earlier` and `others` give the resolvers of the model to start from and of the one to be compared with: an
    orchestrator may know others than ML Metadata allows here.
    """
    data = settings.config.data
    ingest = Ingest(data=json.dumps({"name": data.name, "directory": data.directory}),
                    splits=json.dumps([data.train_split, data.val_split]), fingerprint=settings.fingerprint,
                    span=settings.span, images_per_shard=settings.images_per_shard,
                    largest_unreadable_share=settings.largest_unreadable_share)
    # Where the source lies says nothing of the training: the fingerprint does, and the records.
    config = dataclasses.replace(settings.config, data=dataclasses.replace(data, directory=""))
    old = earlier(ingest)
    examiner = Examiner(examples=ingest.outputs["examples"], baseline_model=old.outputs["model"],
                        drift=settings.drift, new_classes=settings.new_classes)
    trainer = Trainer(run_fn=f"{TRAINER}.run_fn", examples=ingest.outputs["examples"],
                      schema=examiner.outputs["schema"],
                      base_model=old.outputs["model"] if settings.warm_start else None,
                      train_args=trainer_pb2.TrainArgs(splits=[data.train_split]),
                      eval_args=trainer_pb2.EvalArgs(splits=[data.val_split]),
                      custom_config={"config": configs.to_json(config), "training": f"{settings.root}/training",
                                     "program": code_digest.digest(TRAINER)})
    before = others(trainer)
    evaluator = Evaluator(examples=ingest.outputs["examples"], model=trainer.outputs["model"],
                          baseline_model=before.outputs["model"], baseline_blessing=before.outputs["model_blessing"],
                          split=data.val_split, rule=json.dumps(dataclasses.asdict(settings.rule)),
                          force=settings.force, images_per_bundle=settings.images_per_bundle)
    validator = Validator(model=trainer.outputs["model"], model_blessing=evaluator.outputs["blessing"],
                          budget=settings.budget)
    trials, blessing = [], None
    if settings.container:
        requests = Requests(examples=ingest.outputs["examples"], split=data.val_split)
        tried = InfraValidator(trainer.outputs["model"], requests.outputs["requests"], settings.container)
        trials, blessing = [requests, tried], tried.outputs["blessing"]
    pusher = Pusher(model=trainer.outputs["model"], model_blessing=evaluator.outputs["blessing"],
                    infra_blessing=validator.outputs["blessing"], container_blessing=blessing,
                    examples=ingest.outputs["examples"], evaluation=evaluator.outputs["evaluation"],
                    directory=settings.serving)
    # One resolver may be both.
    return list(dict.fromkeys([ingest, old, examiner, trainer, before, evaluator, validator, *trials, pusher]))


def create(settings: Settings, database: str, cache: bool = True) -> pipeline.Pipeline:
    """Return the pipeline, its metadata kept in the SQLite file `database`."""
    return pipeline.Pipeline(
        pipeline_name=settings.name, pipeline_root=f"{settings.root}/artifacts", components=components(settings),
        enable_cache=cache, beam_pipeline_args=list(settings.beam),
        metadata_connection_config=metadata.sqlite_metadata_connection_config(database))
