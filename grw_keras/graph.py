"""Running a functional tf_keras model's graph node by node, through its own layers."""

from collections.abc import Callable

import tensorflow as tf


def run(model, inputs, mask=None, *, call: Callable | None = None):
    """The outputs of `model`, and the values of all its tensors by `str(id(tensor))`.

    It does what the model's own `call` does, except that `call(node, *args, **kwargs)` stands in
    for `node.layer(*args, **kwargs)` where given. Nodes that lead to no output, `add_loss` among
    them, run too.
    """
    values: dict[str, list] = {}

    def store(tensor_ids, tensors):
        for tensor_id, tensor in zip(tensor_ids, tensors, strict=True):
            values[tensor_id] = [tensor] * (model._tensor_usage_count[tensor_id] + 1)

    given = model._flatten_to_reference_inputs(inputs)
    given = list(map(model._conform_to_reference_input, given, model.inputs))
    if mask is not None:
        for tensor, its_mask in zip(given, model._flatten_to_reference_inputs(mask), strict=True):
            tensor._keras_mask = its_mask
    store([str(id(reference)) for reference in model.inputs], given)
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if node.is_input or any(i not in values for i in node.flat_input_ids):
                continue
            args, kwargs = node.map_arguments(values)
            outputs = call(node, *args, **kwargs) if call else node.layer(*args, **kwargs)
            store(node.flat_output_ids, tf.nest.flatten(outputs))
    outputs = [values[str(id(tensor))].pop() for tensor in model.outputs]
    return tf.nest.pack_sequence_as(model.output, outputs), values
