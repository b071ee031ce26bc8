"""A training step that is traced once, where Keras would trace it twice."""

import tf_keras


class TracedOnce(tf_keras.Model):
    """A model whose optimiser has its variables before the first step.

    Keras has it make them in that step: a `tf.function` that makes variables is traced again, and
    of a deep model on a CPU a trace takes tens of seconds.
    """

    def make_train_function(self, force=False):
        """As of any tf_keras model."""
        if hasattr(self.optimizer, "build"):  # those of before Keras 2.11 have none
            self.optimizer.build(self.trainable_variables)
        return super().make_train_function(force)
