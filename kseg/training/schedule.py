"""Compute the learning rate as a function of the step."""

import keras
from keras import KerasTensor, ops

from kseg.config.sections import Train


@keras.saving.register_keras_serializable("kseg")
class PolynomialWithWarmup(keras.optimizers.schedules.LearningRateSchedule):
    """Multiply a polynomial decay by a linear warm-up.

    With the number t of updates before the step, which is 0 for the first step:

        decay(t)  = (base - end) * (1 - t / end_step) ** power + end, and `end` from end_step on
        warmup(t) = warmup_start + (1 - warmup_start) * t / warmup_steps, and 1 from warmup_steps on
        learning_rate(t) = decay(t) * warmup(t)

    Args:
        base: the learning rate at the start of the decay.
        end: the learning rate at end_step and after it.
        power: the exponent of the decay.
        end_step: the step at which the decay reaches `end`.
        warmup_steps: the number of steps of the warm-up; 0 disables it.
        warmup_start: the factor of the first step.

    Example:
        >>> learning_rate = PolynomialWithWarmup(base=0.1, end=0.0, power=1.0, end_step=10)
        >>> [f"{float(learning_rate(step)):.3f}" for step in (0, 5, 9, 20)]
        ['0.100', '0.050', '0.010', '0.000']
        >>> warmed_up = PolynomialWithWarmup(0.1, 0.0, 1.0, end_step=10, warmup_steps=5, warmup_start=0.2)
        >>> [f"{float(warmed_up(step)):.3f}" for step in (0, 5, 9, 20)]
        ['0.020', '0.050', '0.010', '0.000']
    """

    def __init__(
        self, base: float, end: float, power: float, end_step: int, warmup_steps: int = 0, warmup_start: float = 0.1
    ):
        self.base, self.end, self.power, self.end_step = base, end, power, end_step
        self.warmup_steps, self.warmup_start = warmup_steps, warmup_start

    def __call__(self, step: int | KerasTensor) -> KerasTensor:
        """Return the learning rate of a step, counted from 0, as a float32 scalar."""
        return self.scaled(step, 1.0)

    def scaled(self, step: int | KerasTensor, factor: float) -> KerasTensor:
        """Return the learning rate of variables with a multiplier, as in mmengine's parameter groups.

        Args:
            step: the step, counted from 0.
            factor: the multiplier. It scales `base`; the floor `end` is absolute, unless the schedule is constant.

        Returns:
            float32 scalar.

        Example:
            >>> learning_rate = PolynomialWithWarmup(base=1.0, end=0.1, power=1.0, end_step=10)
            >>> [f"{float(learning_rate.scaled(step, 0.5)):.2f}" for step in (0, 5, 10, 20)]
            ['0.50', '0.30', '0.10', '0.10']
        """
        base = self.base * factor
        end = self.end if self.end != self.base else base
        step = ops.cast(step, "float32")
        # The subtraction of integers is exact, so that the last steps lose no digits.
        remaining = ops.maximum(self.end_step - step, 0.0) / self.end_step
        learning_rate = (base - end) * remaining**self.power + end
        if self.warmup_steps:
            progress = ops.minimum(step / self.warmup_steps, 1.0)
            learning_rate = learning_rate * (self.warmup_start + (1 - self.warmup_start) * progress)
        return learning_rate

    def get_config(self):
        return {
            "base": self.base,
            "end": self.end,
            "power": self.power,
            "end_step": self.end_step,
            "warmup_steps": self.warmup_steps,
            "warmup_start": self.warmup_start,
        }


def schedule(train: Train) -> PolynomialWithWarmup:
    """Build the learning rate schedule of a training config.

    Args:
        train: the section `train` of a config. With end_step 0 the decay ends at the last step, as in mmengine.

    Returns:
        The schedule; called with a step, counted from 0, it returns the learning rate.

    Example:
        >>> learning_rate = schedule(Train(steps=3, learning_rate=0.1, end_learning_rate=0.01, power=1.0))
        >>> [f"{float(learning_rate(step)):.3f}" for step in range(3)]
        ['0.100', '0.055', '0.010']
    """
    end_step = train.end_step or max(train.steps - 1, 1)
    return PolynomialWithWarmup(
        train.learning_rate, train.end_learning_rate, train.power, end_step, train.warmup_steps, train.warmup_start
    )
