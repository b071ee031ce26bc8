"""Names of a MoViNet's tensors, the same for every convolution type and source of weights.

A convolution block `P` holds `P/conv/{kernel,bias}`, `P/bn/{gamma,beta,moving_mean,
moving_variance}` and, where its temporal half is a convolution of its own,
`P/conv_temporal/kernel` and `P/bn_temporal/…`. The blocks are `stem`,
`block{i}_layer{j}/{expansion,feature,se_reduce,se_expand,projection,skip}`, `head`, and in the
official classifier `classifier` and `logits`; `block{i}_layer{j}/rezero/scale` is a scalar.
"""

import re
from collections.abc import Iterable
from typing import Any

BATCH_NORM_EPSILON = 1e-3  # of the official MoViNets
_BLOCK = re.compile(r"\bb(\d+)/l(\d+)\b")
_PLACE = re.compile(
    r"(?:^|/)(?:"
    r"(?P<block>block\d+_layer\d+)(?:/bneck)?/(?:(?P<part>expansion|feature|projection)"
    r"|se/(?P<gate>se_reduce|se_expand)|(?P<skip>skip)/skip_project|(?P<rezero>rezero/)?scale$)"
    r"|(?P<stem>stem)/stem|(?P<hidden>classifier_head(?:_\d+)?/head)"
    r"|(?P<logits>classifier_head(?:_\d+)?/classifier)|(?P<head>head)/project)"
)
_STATISTIC = re.compile(r"/(bn(?:_temporal)?)(?:_\d+)?/(gamma|beta|moving_mean|moving_variance)$")
_WEIGHT = re.compile(r"/conv[23]d(_temporal)?(?:/.*)?/(?:depthwise_)?(kernel|bias)$")


def canonical_name(variable_name: str) -> str | None:
    """The name above of an official variable; None for one that is not of a MoViNet.

    Args:
        variable_name: name of a variable of the official builders, or of an official SavedModel,
            which calls the blocks b{i}/l{j}; with or without the closing ":0".

    Example:
        >>> canonical_name("block0_layer0/bneck/se/se_reduce/conv2d/conv2d_1/kernel:0")
        'block0_layer0/se_reduce/conv/kernel'
        >>> canonical_name("b1/l0/bneck/feature/conv2d/bn_temporal/gamma")
        'block1_layer0/feature/bn_temporal/gamma'
    """
    name = _BLOCK.sub(r"block\1_layer\2", variable_name.partition(":")[0])
    place = _PLACE.search(name)
    if place is None:
        return None
    found = place.groupdict()
    if found["stem"] or found["head"]:
        prefix = found["stem"] or found["head"]
    elif found["hidden"] or found["logits"]:
        prefix = "classifier" if found["hidden"] else "logits"
    else:
        part = found["part"] or found["gate"] or found["skip"]
        if part is None:
            return f"{found['block']}/rezero/scale"
        prefix = f"{found['block']}/{part}"
    statistic = _STATISTIC.search(name)
    if statistic:
        return f"{prefix}/{statistic[1]}/{statistic[2]}"
    weight = _WEIGHT.search(name)
    if weight:
        return f"{prefix}/conv{weight[1] or ''}/{weight[2]}"
    return None


def by_canonical_name(variables: Iterable[Any]) -> dict[str, Any]:
    """Official variables by their canonical names.

    Raises:
        ValueError: a variable that is not of an official MoViNet.
    """
    named = {}
    for variable in variables:
        name = canonical_name(variable.name)
        if name is None:
            raise ValueError(f"Not a variable of an official MoViNet: {variable.name}")
        named[name] = variable
    return named
