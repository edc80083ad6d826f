"""The reference systems' model fixtures as configs and models of ours."""

import json

import numpy as np
from shared_files import FIXTURES

from kseg import models, weights
from kseg.config import Encnet, Fcn, Loss, Model


class Case:
    """One fixture: its arrays, and our model with its weights."""

    def __init__(self, name):
        self.directory = FIXTURES / name
        self.system = name.split("/")[0]
        self.description = json.loads((self.directory / "config.json").read_text())
        self.config, self.loss = getattr(self, f"read_{self.system}")()
        self.model = models.build(self.config, self.description["args"]["classes"])
        self.load()

    def load(self):
        weights.load_checkpoint(self.model, self.directory / "model.pth", self.config.head)

    def array(self, name):
        return np.load(self.directory / f"{name}.npy")

    def json(self, name):
        return json.loads((self.directory / f"{name}.json").read_text())

    def read_mmseg(self):
        args, cfg = self.description["args"], self.description["cfg"]
        head, auxiliary = cfg["decode_head"], cfg["auxiliary_head"]
        config = Model(
            backbone=f"resnet{args['depth']}", stem="deep" if args["variant"] == "v1c" else "7x7",
            width=cfg["backbone"]["base_channels"], output_stride=args["os"],
            contract_dilation=cfg["backbone"]["contract_dilation"], head=args["model"], channels=head["channels"],
            auxiliary_channels=auxiliary["channels"], dropout=0.0, align_corners=head["align_corners"],
            encnet=Encnet(codewords=head.get("num_codes", 32), lateral=head.get("add_lateral", False),
                          se=head.get("use_se_loss", True)),
            fcn=Fcn(convolutions=head.get("num_convs", 2), concat_input=head.get("concat_input", True)))
        average = "valid" if head["loss_decode"]["avg_non_ignore"] else "all"
        return config, Loss(average=average, auxiliary=auxiliary["loss_decode"]["loss_weight"],
                            se=head.get("loss_se_decode", {}).get("loss_weight", 0.2))

    def read_sss(self):
        args, cfg = self.description["args"], self.description["cfg"]
        config = Model(
            backbone=f"resnet{args['depth']}", width=cfg["backbone"].get("base_channels", 64 // args["width_div"]),
            output_stride=args["os"], head=args["model"], channels=cfg["head"]["feats_channels"],
            auxiliary_channels=cfg["auxiliary"]["out_channels"], dropout=0.0,
            encnet=Encnet(codewords=cfg["head"].get("num_codes", 32)), fcn=Fcn(concat_input=False))
        return config, Loss(average="valid")
