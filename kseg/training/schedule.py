"""The learning rate as a function of the step."""

import keras
from keras import ops

from kseg.config import Train


@keras.saving.register_keras_serializable("kseg")
class PolynomialWithWarmup(keras.optimizers.schedules.LearningRateSchedule):
    """Polynomial decay that multiplies into a linear warm-up.

    rate(t) = (base - end) * (1 - t / end_step) ** power + end, held at `end` from end_step on; during the first
    `warmup_steps` it is multiplied by a factor that rises linearly from `warmup_start` to 1.
    """

    def __init__(self, base, end, power, end_step, warmup_steps=0, warmup_start=0.1):
        self.base, self.end, self.power, self.end_step = base, end, power, end_step
        self.warmup_steps, self.warmup_start = warmup_steps, warmup_start

    def __call__(self, step):
        step = ops.cast(step, "float32")
        # The difference is taken in whole numbers, so that the last steps lose no digits.
        left = ops.maximum(self.end_step - step, 0.0) / self.end_step
        rate = (self.base - self.end) * left**self.power + self.end
        if self.warmup_steps:
            done = ops.minimum(step / self.warmup_steps, 1.0)
            rate = rate * (self.warmup_start + (1 - self.warmup_start) * done)
        return rate

    def get_config(self):
        return {"base": self.base, "end": self.end, "power": self.power, "end_step": self.end_step,
                "warmup_steps": self.warmup_steps, "warmup_start": self.warmup_start}


def schedule(train: Train) -> PolynomialWithWarmup:
    """Return the schedule of a training config; train.end_step 0 ends it at the last step, as mmengine does."""
    end_step = train.end_step or max(train.steps - 1, 1)
    return PolynomialWithWarmup(train.learning_rate, train.end_learning_rate, train.power, end_step,
                                train.warmup_steps, train.warmup_start)
