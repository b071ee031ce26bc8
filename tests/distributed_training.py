"""A training whose batch norms are synchronised on one replica too: python -m … DATA OUT.

A worker of TF_CONFIG's cluster; without one, the reference that the cluster is compared with.
Alone, batch norm would be the fused one, whose running variance has another divisor.
"""

import sys

from grw_keras.models import pretrained
from grw_keras.training import recipe, run
from grw_keras.training.cluster import cluster_from_environment

RECIPE = recipe.from_dict(
    {
        "model": {
            "name": "mobilenet_v3_small_grw",
            "weights": None,
            "spec": {"frames": 6, "resolution": 32, "dropout": 0.0},
        },
        "data": {"augmentation": None, "workers": 0, "short": "pad", "test_regex": "test"},
        "training": {
            "epochs": 1,
            "batch_size": 4,
            "optimizer": "sgd",
            "backbone_rate": [1e-5, 1e-6],
            "head_rate": [1e-4, 1e-5],
            "ema_decay": 0.9,
            "frozen_batch_norm": False,
        },
    }
)


def refuse(*_):
    raise AssertionError("Only the first worker saves the model")


def train(data: str, out: str) -> None:
    """Trains by the recipe, with batch norms that are not fused."""
    make_model, save = run.make_model, pretrained.save_pretrained
    cluster = cluster_from_environment()
    if cluster is not None and cluster.index:
        pretrained.save_pretrained = refuse

    def unfused(*arguments):
        model = make_model(*arguments)
        for layer in model.batch_norms():
            layer.fused = False
        return model

    run.make_model = unfused
    try:
        run.train(RECIPE, data, out, cluster=cluster)
    finally:
        run.make_model, pretrained.save_pretrained = make_model, save


if __name__ == "__main__":
    train(*sys.argv[1:])
