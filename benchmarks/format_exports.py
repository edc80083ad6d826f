"""Write the exports that benchmarks.formats measures: a head with random weights in all formats.

    PYTHON -m benchmarks.format_exports OUT HEAD HEIGHT WIDTH FORMAT ...

OUT/1 has all formats, OUT/2 the SavedModel of export.device=cpu.
"""

import sys
from dataclasses import replace
from pathlib import Path

from kseg.system import quiet_start


def main() -> int:
    out, head, height, width, *forms = sys.argv[1:]
    quiet_start.import_tensorflow()
    import keras

    from kseg import config as configs
    from kseg import models
    from kseg.datasets import registry
    from kseg.exporting import exporter

    config = configs.load(
        f"{head}_cityscapes", ["evaluate.resize=", f"export.size={height},{width}", "export.warmup_batches=1"]
    )
    dataset = registry.find_dataset(config.data)
    keras.utils.set_random_seed(0)
    model = models.build(config.model, len(dataset.classes))
    exporter.export(model, config, dataset, Path(out), version=1, formats=["savedmodel", *forms])
    on_cpu = replace(config, export=replace(config.export, device="cpu"))
    exporter.export(model, on_cpu, dataset, Path(out), version=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
