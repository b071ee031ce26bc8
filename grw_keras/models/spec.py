"""ModelSpec: everything that defines a model, as plain data."""

import dataclasses
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

from grw_keras.checked import Checked
from grw_keras.hints import did_you_mean

# Width of each backbone's per-frame features: the MoViNets' head projection (official
# BLOCK_SPECS), and MobileNetV3's last convolution, "Conv_1". Both leave out the wider hidden
# layer of the official classifier, as the authors' MoViNets do.
MOVINETS = {"movinet_a0": 480, "movinet_a1": 600, "movinet_a2": 640, "movinet_a3": 744}
MOBILENETS = {"mobilenet_v3_small": 576, "mobilenet_v3_large": 960}
FEATURE_WIDTHS = MOVINETS | MOBILENETS

CHOICES: dict[str, tuple[str, ...]] = {
    "backbone": tuple(FEATURE_WIDTHS),
    "conv_type": ("2plus1d", "3d_2plus1d", "3d"),
    "se_type": ("2plus3d", "3d", "2d", "none"),
    "activation": ("hard_swish", "swish", "relu6"),
    "classifier_activation": ("swish", "hard_swish", "relu6"),
    "gating_activation": ("hard_sigmoid", "hard_sigmoid_keras2", "sigmoid"),
    "head": ("classifier", "transformer"),
    "head_attention": ("bidirectional", "causal"),
    "placement": ("none", "final", "intermediate"),
    "orderings": ("auto", "all", "exact", "sampled"),
    "loss_input": ("z", "layer_norm"),
    "temporal_shift": ("none", "bidirectional", "causal"),
}
_SIZES = (
    *("resolution", "resize", "frames", "num_classes"),
    *("embed_dim", "head_depth", "head_heads", "head_mlp", "head_window"),
)
_MINIMA = {"window": 3, "seed": 0}
_RATES = ("dropout", "stochastic_depth")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec(Checked):
    """Everything that defines a video classifier.

    Sizes left at 0 take their usual value: `embed_dim` the backbone's own width, `head_mlp` 4 D
    (D / 2 in a causal head), `head_window` all `frames`.

    Args:
        backbone: one of `FEATURE_WIDTHS`.
        streaming: can run frame by frame: MoViNet-Ai-S, MobileNetV3. False: base MoViNets, where
            every frame's features see the whole clip.
        resolution: height and width that the model is measured at, pixels.
        resize: height and width that evaluation resizes a frame to before it cuts out the
            centre, pixels.
        frames: N, frames of an evaluation clip.
        fps: frames a second at which clips are sampled.
        num_classes: width of the logits.
        activation: of the MoViNets' blocks.
        classifier_activation: of the hidden layer of their official classifier; swish in the
            stream models too (`MovinetModel.activation` in the official configurations).
        gating_activation: of the squeeze-excite gates: `"hard_sigmoid"`, relu6(x + 3) / 6, of the
            official stream models; `"hard_sigmoid_keras2"`, clip(0.2 x + 0.5, 0, 1), of the
            authors' GRW weights; `"sigmoid"` of the base models.
        se_type: squeeze-excite of the official builder; `"none"` in its mobile int8 models.
        conv_type: of the official builder.
        head: `"classifier"`, the backbone's own; `"transformer"`, the paper's.
        embed_dim: D, width of Z, the affine map's output.
        head_depth: layers of the transformer head.
        head_heads: attention heads of each layer.
        head_mlp: hidden width of each layer's MLP.
        head_window: frames that the transformer head sees in a stream.
        head_attention: `"bidirectional"`, the paper's: in a stream the whole head runs over its
            window again at every frame. `"causal"`: a frame attends to the `head_window` frames
            up to it, in clips too, so a stream works on each frame once.
        placement: where GRW-smoothing acts: `"none"`; `"final"`, on Z (figure 4);
            `"intermediate"`, on a layer of the backbone (figure 3).
        endpoint: for `"intermediate"`, the backbone's layer whose input is smoothed.
        window: T of equation 1, frames.
        alpha: α of equation 6.
        grw_weight: λ of equation 7.
        orderings: of a window that the loss compares with, as `GRWRegularizer` takes them: by its
            length, all, exactly all, or a sample.
        loss_input: of the loss in the final placement: `"z"`, as in figure 4, or
            `"layer_norm"`, Z standardised frame by frame, as the head reads it.
        pair_input: feed (frame, base frame of its T-window) as six channels; MobileNetV3.
        temporal_shift: TSM; `"causal"` takes channels from the frame before alone, as streams do
            with `"bidirectional"` too.
        dropout: rate before the last linear layer, in [0, 1). Ours: the paper states none.
        stochastic_depth: drop rate of the last MoViNet block, in [0, 1). Ours.
        frozen_batch_norm: keep the backbone's batch norms as they are in training too; so for
            weights whose statistics are not those of their inputs, as in TFLite files.
        seed: of everything random in training.

    Raises:
        ValueError: a value out of range, or parts that don't go together.

    Reference:
        Section 4 of the paper, "Models and Implementation".
    """

    backbone: str
    streaming: bool
    resolution: int
    resize: int
    frames: int
    fps: float
    num_classes: int = 600
    activation: str = "hard_swish"
    classifier_activation: str = "swish"
    gating_activation: str = "hard_sigmoid"
    se_type: str = "2plus3d"
    conv_type: str = "2plus1d"
    head: str = "classifier"
    embed_dim: int = 0
    head_depth: int = 2
    head_heads: int = 8
    head_mlp: int = 0
    head_window: int = 0
    head_attention: str = "bidirectional"
    placement: str = "none"
    endpoint: str = "head"
    window: int = 5
    alpha: float = 0.5
    grw_weight: float = 0.1
    orderings: str = "auto"
    loss_input: str = "z"
    pair_input: bool = False
    temporal_shift: str = "none"
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    frozen_batch_norm: bool = False
    seed: int = 0

    def __post_init__(self):
        for field, choices in CHOICES.items():
            self._require(
                field, getattr(self, field) in choices, f"one of {', '.join(map(repr, choices))}"
            )
        defaults = {"embed_dim": FEATURE_WIDTHS[self.backbone], "head_window": self.frames}
        for field, value in defaults.items():
            if getattr(self, field) == 0:
                object.__setattr__(self, field, value)
        if self.head_mlp == 0:
            object.__setattr__(self, "head_mlp", self._usual_head_mlp())
        for field in (*_SIZES, "window", "seed"):
            value = getattr(self, field)
            whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
            self._require(field, whole, "an integer")
            self._require(field, value >= _MINIMA.get(field, 1), f">= {_MINIMA.get(field, 1)}")
            object.__setattr__(self, field, int(value))
        for field in ("streaming", "pair_input", "frozen_batch_norm"):
            self._require(field, isinstance(getattr(self, field), bool), "True or False")
        for field in ("alpha", "grw_weight", "fps", *_RATES):
            self._require(field, isinstance(getattr(self, field), numbers.Real), "a number")
        for field in ("alpha", "grw_weight"):
            self._require(field, 0 <= getattr(self, field) < float("inf"), ">= 0 and finite")
        for field in _RATES:
            self._require(field, 0 <= getattr(self, field) < 1, "in [0, 1)")
        self._require("fps", 0 < self.fps < float("inf"), "positive")
        self._check_parts()

    def _check_parts(self) -> None:
        transformer = self.head == "transformer"
        self._require(
            "placement",
            not (self.placement == "final" and not transformer),
            "'none' or 'intermediate' with the official classifier: only head='transformer' has Z",
        )
        own_input = self.loss_input == "z" or self.placement == "final"
        self._require("loss_input", own_input, "'z' but in the final placement")
        if transformer:
            self._require("embed_dim", self.embed_dim % 2 == 0, "even: half sines, half cosines")
            divides = self.embed_dim % self.head_heads == 0
            self._require("head_heads", divides, f"a divisor of {self.embed_dim}")
        bidirectional = self.head_attention == "bidirectional"
        self._require(
            "head_attention", transformer or bidirectional, "'bidirectional' without a transformer"
        )
        if self.backbone in MOVINETS:
            self._require("pair_input", not self.pair_input, "False with a MoViNet")
            self._require("temporal_shift", self.temporal_shift == "none", "'none' with a MoViNet")
        else:
            self._require("streaming", self.streaming, "True for MobileNetV3")

    def _usual_head_mlp(self) -> int:
        # In a stream a frame's latency is the reading of the head's weights, most of them here.
        return self.embed_dim // 2 if self.head_attention == "causal" else 4 * self.embed_dim

    @property
    def family(self) -> str:
        """`"movinet"` or `"mobilenet"`."""
        return "movinet" if self.backbone in MOVINETS else "mobilenet"

    @property
    def relu6(self) -> bool:
        """Whether this is the MoViNets' mobile int8 variant."""
        return self.family == "movinet" and self.activation == "relu6" and self.se_type == "none"

    @property
    def name(self) -> str:
        """The model's name: backbone, form, then what is done for smoothness."""
        form = ""
        if self.family == "movinet":
            form = ("_stream" if self.streaming else "") + ("_relu6" if self.relu6 else "")
        elif self.temporal_shift != "none":
            form = "_tsm"
        if self.placement == "intermediate":
            return f"{self.backbone}{form}_intermediate"
        if self.head == "transformer":
            return f"{self.backbone}{form}{'_grw' if self.placement == 'final' else '_attention'}"
        return f"{self.backbone}{form}"

    @property
    def stem_channels(self) -> int:
        return 6 if self.pair_input else 3

    def replace(self, changes: Mapping[str, Any]) -> "ModelSpec":
        """A copy with some fields changed; sizes at their usual value follow what they depend on,
        and `resize` follows `resolution`.

        Raises:
            TypeError: a field that does not exist, with the closest one that does.
        """
        check_fields(changes)
        usual = {
            "embed_dim": FEATURE_WIDTHS[self.backbone],
            "head_mlp": self._usual_head_mlp(),
            "head_window": self.frames,
        }
        implied = {field: 0 for field, value in usual.items() if getattr(self, field) == value}
        if isinstance(changes.get("resolution"), numbers.Real):
            implied["resize"] = round(self.resize * changes["resolution"] / self.resolution)
        return dataclasses.replace(self, **{**implied, **changes})

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` reads back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ModelSpec":
        """The spec that `to_dict` wrote; TypeError on fields missing or unknown."""
        check_fields(data)
        return cls(**data)


def check_fields(names: Iterable[str]) -> None:
    """TypeError, with the closest name, for a name that is no field of ModelSpec."""
    known = [field.name for field in dataclasses.fields(ModelSpec)]
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known)
            raise TypeError(
                f"{hint}ModelSpec has the fields {', '.join(known)}. Received: {name!r}"
            )
