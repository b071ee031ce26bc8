"""Changes to the graph of a TFLite file, for tests: some keep its function, others break it."""

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

OPERATORS = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
RELU6, NO_ACTIVATION = schema.ActivationFunctionType.RELU6, schema.ActivationFunctionType.NONE


def write_edited(source, path, change):
    """Writes to `path` a copy of the file `source` after `change(model)`."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(source.read_bytes(), 0))
    change(model)
    builder = schema.flatbuffers.Builder(2**22)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def operators(model, name):
    """A graph's operators of one kind, in order."""
    codes = [max(c.builtinCode, c.deprecatedBuiltinCode) for c in model.operatorCodes]
    graph = model.subgraphs[0]
    return [op for op in graph.operators if OPERATORS[codes[op.opcodeIndex]] == name]


def add_code(model, name):
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, name)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    code.version = 1
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def floats(model, tensor):
    found = model.subgraphs[0].tensors[tensor]
    return np.array(model.buffers[found.buffer].data, np.uint8).view(np.float32)


def set_floats(model, tensor, values):
    """Gives a tensor a buffer of its own: converters share buffers of equal constants."""
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(np.asarray(values, np.float32).tobytes(), np.uint8)
    model.buffers.append(buffer)
    model.subgraphs[0].tensors[tensor].buffer = len(model.buffers) - 1


def new_tensor(model, like, values=None):
    graph = model.subgraphs[0]
    tensor = schema.TensorT()
    tensor.type, tensor.name, tensor.buffer = schema.TensorType.FLOAT32, b"new", 0
    tensor.shape = np.array(graph.tensors[like].shape if values is None else values.shape, np.int32)
    graph.tensors.append(tensor)
    if values is not None:
        set_floats(model, len(graph.tensors) - 1, values)
    return len(graph.tensors) - 1


def insert(model, after, name, constant, activation=NO_ACTIVATION):
    """Puts `name` with a constant behind an operator, before all that reads it."""
    graph = model.subgraphs[0]
    op, (output,) = schema.OperatorT(), after.outputs
    op.opcodeIndex = add_code(model, name)
    kind = {"ADD": schema.AddOptionsT, "MUL": schema.MulOptionsT}[name]
    op.builtinOptions = kind()
    op.builtinOptions.fusedActivationFunction = activation
    op.builtinOptionsType = getattr(schema.BuiltinOptions, kind.__name__.removesuffix("T"))
    inner = new_tensor(model, output)
    after.outputs = [inner]
    op.inputs = [inner, new_tensor(model, output, np.asarray(constant, np.float32))]
    op.outputs = [output]
    position = next(i for i, other in enumerate(graph.operators) if other is after)
    graph.operators.insert(position + 1, op)


def gates(model):
    """(second convolution of squeeze-excite, the MUL by 1/6 behind it) of every block."""
    makers = {op.outputs[0]: op for op in operators(model, "CONV_2D")}
    clipped = {
        output: op for output, op in makers.items() if op.builtinOptions.fusedActivationFunction
    }
    muls = operators(model, "MUL")
    found = [(clipped[mul.inputs[0]], mul) for mul in muls if mul.inputs[0] in clipped]
    assert len(found) == 15
    return found


# ---- the same function in another graph


def kernels_in_float(model):
    for index, tensor in enumerate(model.subgraphs[0].tensors):
        if tensor.type == schema.TensorType.INT8:
            axis = tensor.quantization.quantizedDimension
            scale = np.array(tensor.quantization.scale, np.float64)
            stored = np.array(model.buffers[tensor.buffer].data, np.uint8).view(np.int8)
            kernel = np.moveaxis(stored.reshape(tensor.shape), axis, -1) * scale
            tensor.type, tensor.quantization = schema.TensorType.FLOAT32, None
            set_floats(model, index, np.moveaxis(kernel, -1, axis))


def scramble_names(model):
    for tensor in model.subgraphs[0].tensors:
        tensor.name = b"x"


def reverse_tensors(model):
    graph = model.subgraphs[0]
    last = len(graph.tensors) - 1
    graph.tensors.reverse()
    graph.inputs, graph.outputs = (
        [last - i for i in side] for side in (graph.inputs, graph.outputs)
    )
    for op in graph.operators:
        op.inputs = [last - i if i >= 0 else -1 for i in op.inputs]
        op.outputs = [last - i for i in op.outputs]
    model.signatureDefs = []


def swap_operands(model):
    for op in operators(model, "ADD") + operators(model, "MUL"):
        op.inputs = list(op.inputs)[::-1]


def unfold_hard_sigmoid(model):
    for convolution, _ in gates(model):
        bias = convolution.inputs[2]
        set_floats(model, bias, floats(model, bias) - 3)
        convolution.builtinOptions.fusedActivationFunction = NO_ACTIVATION
        insert(model, convolution, "ADD", 3.0, RELU6)


def unfold_biases(model):
    for convolution in operators(model, "DEPTHWISE_CONV_2D"):
        bias = floats(model, convolution.inputs[2])
        convolution.inputs = [*convolution.inputs[:2], -1]
        insert(model, convolution, "ADD", bias.reshape(1, 1, 1, -1))


def unfold_scales(model):
    for convolution in operators(model, "CONV_2D")[:1]:
        kernel, bias = (floats(model, i) for i in convolution.inputs[1:])
        scale = np.linspace(-2, 2, bias.size, dtype=np.float32)
        set_floats(model, convolution.inputs[1], kernel.reshape(bias.size, -1) / scale[:, None])
        set_floats(model, convolution.inputs[2], bias / scale)
        insert(model, convolution, "MUL", scale)


def unfuse_hard_swish(model):
    """x * (relu6(x + 3) * 0.16667) in four operators, as in files without HARD_SWISH."""
    swish = operators(model, "HARD_SWISH")[0]
    (x,), (output,) = swish.inputs, swish.outputs
    graph = model.subgraphs[0]
    gate = new_tensor(model, output)
    swish.opcodeIndex = add_code(model, "MUL")
    swish.builtinOptions = schema.MulOptionsT()
    swish.builtinOptionsType = schema.BuiltinOptions.MulOptions
    swish.inputs = [x, gate]
    copy = schema.OperatorT()
    copy.opcodeIndex = add_code(model, "RESHAPE")
    copy.inputs, copy.outputs = [x], [gate]
    position = next(i for i, op in enumerate(graph.operators) if op is swish)
    graph.operators.insert(position, copy)
    insert(model, copy, "MUL", 0.16667)
    insert(model, copy, "ADD", 3.0, RELU6)


# ---- another function


def fold_rezero_away(model):
    makers = {op.outputs[0]: op for op in model.subgraphs[0].operators}
    readers = {i: op for op in model.subgraphs[0].operators for i in op.inputs}
    for mul in operators(model, "MUL"):
        if model.subgraphs[0].tensors[mul.inputs[1]].buffer and mul.outputs[0] in readers:
            add, reshape = readers[mul.outputs[0]], makers.get(mul.inputs[0])
            if add in operators(model, "ADD") and reshape in operators(model, "RESHAPE"):
                add.inputs = [mul.inputs[0] if i == mul.outputs[0] else i for i in add.inputs]


def clip_gates_to_one(model):
    code = add_code(model, "RELU_0_TO_1")
    for convolution, mul in gates(model):
        convolution.builtinOptions.fusedActivationFunction = NO_ACTIVATION
        mul.opcodeIndex, mul.inputs = code, [mul.inputs[0]]
        mul.builtinOptions, mul.builtinOptionsType = None, 0


def replace(name, other, position=0):
    def change(model):
        op = operators(model, name)[position]
        op.opcodeIndex = add_code(model, other)

    return change


def set_options(name, position=0, **options):
    def change(model):
        vars(operators(model, name)[position].builtinOptions).update(options)

    return change


def flex(model):
    replace("HARD_SWISH", "CUSTOM")(model)
    model.operatorCodes[-1].customCode = b"FlexConv3D"


def feed_a_kernel(model):
    graph = model.subgraphs[0]
    kernel = operators(model, "CONV_2D")[5].inputs[1]
    graph.tensors[kernel].buffer = 0
    graph.inputs = [*graph.inputs, kernel]


def eight_frames(model):
    graph = model.subgraphs[0]
    for i in graph.inputs:
        if graph.tensors[i].shape[-1] == 3:
            graph.tensors[i].shape = np.array([1, 8, 172, 172, 3], np.int32)


def cut_kernel(model):
    kernel = operators(model, "CONV_2D")[5].inputs[1]
    buffer = model.buffers[model.subgraphs[0].tensors[kernel].buffer]
    buffer.data = buffer.data[:-4]


def drop_block(model):
    """Lets the last block's expansion and skip read the block before it."""
    sums = [
        op
        for op in operators(model, "ADD")
        if model.subgraphs[0].tensors[op.outputs[0]].shape[-1] == 104
    ]
    dropped, kept = sums[-2].outputs[0], sums[-3].outputs[0]
    for op in model.subgraphs[0].operators:
        op.inputs = [kept if i == dropped else i for i in op.inputs]
