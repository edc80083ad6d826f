"""Build MMSegmentation's models for benchmarks.heads and benchmarks.training, under the peers' Python."""

from pathlib import Path

from benchmarks.peer_pipeline import stub_compiled_operators


def build_model(head: str, classes: int) -> tuple[dict[str, str], object]:
    """Return versions, and the model of MMSegmentation's config file with random weights."""
    stub_compiled_operators()
    import mmcv
    import mmengine
    import mmseg
    from mmengine.model import revert_sync_batchnorm
    from mmseg.registry import MODELS
    from mmseg.utils import register_all_modules

    register_all_modules()
    file = Path(mmseg.__file__).parent / ".mim" / "configs" / "_base_" / "models" / f"{head}_r50-d8.py"
    settings = mmengine.Config.fromfile(file).model
    settings.pretrained = None
    settings.decode_head.num_classes = settings.auxiliary_head.num_classes = classes
    model = revert_sync_batchnorm(MODELS.build(settings))
    model.init_weights()
    return {"mmseg": mmseg.__version__, "mmcv": mmcv.__version__, "mmengine": mmengine.__version__}, model
