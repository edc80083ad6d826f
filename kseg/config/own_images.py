"""Return the config of a model for images of one's own, which the base configs such as `encnet` share."""

from kseg.config import Augment, Config, Data, Deeplab, Loss, Model, Train


def own_images(head: str, deeplab: Deeplab = Deeplab()) -> Config:
    """Return a config that trains a model on a `folder` dataset.

    Args:
        head: The main head.
        deeplab: Settings of DeepLab's heads.

    Returns:
        The config. `data.directory` is left to the user.
    """
    return Config(
        data=Data(name="folder"),
        # Images keep their size, since nothing is known about it. Smaller ones are padded to the crop.
        augment=Augment(crop=(384, 384)),
        model=Model(
            # ResNet-18 trains on two CPU cores within hours and on a GPU within minutes, and a few hundred images
            # hardly need more. Torchvision's ImageNet weights fit the 7x7 stem: --set init.backbone=resnet18, which
            # downloads them.
            backbone="resnet18",
            stem="7x7",
            output_stride=16,
            head=head,
            # The published ResNet-18 models have a quarter of the channels, because the backbone's last stage has a
            # quarter of those of ResNet-50.
            channels=128,
            auxiliary_channels=64,
            deeplab=deeplab,
        ),
        # Padding and unlabeled areas have no label; divided by all pixels, they would weaken the gradient.
        loss=Loss(average="valid"),
        train=Train(
            global_batch=8,
            # With 400 images these are 80 epochs.
            steps=4_000,
            learning_rate=0.01,
            # The first steps of a head with random weights would otherwise disturb a pretrained backbone.
            warmup_steps=100,
            log_every=20,
            # A validation reads all images of its split, so that it should remain a small part of the time.
            validate_every=400,
            checkpoint_every=200,
        ),
    )
