"""The paper's two learning rates: one cosine for the backbone, ten times it for the head."""

import contextlib
import math
from collections.abc import Iterable
from typing import Any

import tf_keras

# Section 4, "Training": [1e-4, 1e-6] for the backbone, [1e-3, 1e-5] for the transformer head.
BACKBONE_RATES = (1e-4, 1e-6)
HEAD_FACTOR = 10.0
_Optimizer: Any = object  # to type checkers an optimiser, once mixed in


def unwrapped(optimizer: Any) -> Any:
    """The optimiser itself, where `LossScaleOptimizer` wraps it for half precision."""
    return getattr(optimizer, "inner_optimizer", optimizer)


class TwoRates(_Optimizer):
    """Mixed into an optimiser: its learning rate is `head_factor` times as large for all but the
    backbone.

    Args:
        learning_rate: the backbone's, a number or a schedule over steps.
        head_factor: of the rest's learning rate to it, > 0.
        backbone: the variables that take `learning_rate` itself; a `VideoClassifier` names its
            own when it is compiled.
        **kwargs: the optimiser's.

    Reference:
        Section 4 of the paper, "Training", which doesn't name an optimiser.
    """

    def __init__(
        self,
        learning_rate=BACKBONE_RATES[0],
        head_factor: float = HEAD_FACTOR,
        backbone: Iterable | None = None,
        **kwargs,
    ):
        if not 0 < head_factor < math.inf:
            raise ValueError(f"`head_factor` must be positive. Received: {head_factor}")
        self._factor = 1.0
        kwargs.setdefault("name", type(self).__name__)
        super().__init__(learning_rate, **kwargs)
        self.head_factor = float(head_factor)
        self._slow: set | None = None
        if backbone is not None:
            self.name_backbone(backbone)

    @property
    def knows_backbone(self) -> bool:
        """Whether it has been said which variables are the backbone's."""
        return self._slow is not None

    def name_backbone(self, variables: Iterable) -> None:
        """Says which variables take `learning_rate` itself."""
        self._slow = {self._var_key(variable) for variable in variables}

    @property
    def learning_rate(self):
        rate = tf_keras.optimizers.Optimizer.learning_rate.fget(self)
        return rate if self._factor == 1.0 else rate * self._factor

    @learning_rate.setter
    def learning_rate(self, value):
        tf_keras.optimizers.Optimizer.learning_rate.fset(self, value)

    def update_step(self, gradient, variable):
        with self._rate_of(variable):
            super().update_step(gradient, variable)

    def _apply_weight_decay(self, variables):
        # Kernels alone decay, each at its own rate: scales and biases have nothing to shrink for.
        for variable in variables:
            if len(variable.shape) > 1:
                with self._rate_of(variable):
                    super()._apply_weight_decay([variable])

    @contextlib.contextmanager
    def _rate_of(self, variable):
        if self._slow is None:
            raise ValueError(
                "Say which variables are the backbone's, by `name_backbone(model.backbone.weights)`"
                " or by `VideoClassifier.compile`, or they would train at the head's rate."
            )
        self._factor = 1.0 if self._var_key(variable) in self._slow else self.head_factor
        try:
            yield
        finally:
            self._factor = 1.0

    def get_config(self):
        return {**super().get_config(), "head_factor": self.head_factor}


@tf_keras.saving.register_keras_serializable("grw_keras")
class TwoRateAdam(TwoRates, tf_keras.optimizers.Adam):
    __doc__ = f"Adam. {TwoRates.__doc__}"


@tf_keras.saving.register_keras_serializable("grw_keras")
class TwoRateAdamW(TwoRates, tf_keras.optimizers.AdamW):
    __doc__ = f"AdamW. {TwoRates.__doc__}"


@tf_keras.saving.register_keras_serializable("grw_keras")
class TwoRateSGD(TwoRates, tf_keras.optimizers.SGD):
    __doc__ = f"SGD. {TwoRates.__doc__}"


TWO_RATE_OPTIMIZERS = {"adam": TwoRateAdam, "adamw": TwoRateAdamW, "sgd": TwoRateSGD}


def cosine(rates: tuple[float, float], steps: int):
    """The schedule that falls from the first to the last rate along a cosine over `steps`."""
    first, last = rates
    return tf_keras.optimizers.schedules.CosineDecay(first, int(steps), alpha=last / first)


def paper_optimizer(steps: int | None = None) -> TwoRateAdam:
    """The optimiser with the paper's learning rates.

    Args:
        steps: of the whole training, over which both rates fall along a cosine, from 1e-4 to
            1e-6 and from 1e-3 to 1e-5. None: they stay at 1e-4 and 1e-3.

    Raises:
        ValueError: `steps` is no positive integer.
    """
    if steps is None:
        return TwoRateAdam(BACKBONE_RATES[0])
    if int(steps) != steps or steps < 1:
        raise ValueError(f"`steps` must be a positive integer or None. Received: {steps}")
    return TwoRateAdam(cosine(BACKBONE_RATES, steps))
