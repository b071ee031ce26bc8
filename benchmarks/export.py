"""Frames of our stream files against the official graph's, interleaved in one run.

    python benchmarks/export.py --csv benchmarks/results/export.csv

The official graph is `movinet_a0_stream` with its classifier of 600 classes, exported as its own
documentation does, unchanged: external states, one frame. Ours have random weights too, for latency
does not depend on them. One thread. The bidirectional head's figure at a stride is that of its embed
file plus that of its classify file over the stride.
"""

import argparse
import csv
import os
import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf
from official.projects.movinet.modeling.movinet import Movinet
from official.projects.movinet.modeling.movinet_model import MovinetClassifier

from grw_keras import zoo
from grw_keras.export import to_tflite
from grw_keras.export.benchmark import RunningFile, cpu, runtime
from grw_keras.export.measurement import interleaved
