"""What the model computes: its streams, writers, readers and edges, read off one traced run and verified."""

from voltmeter.wiring import models  # they register their prefixes
from voltmeter.wiring.rows import Rows
from voltmeter.wiring.weights import HeadWeights
from voltmeter.wiring.wire import wire
from voltmeter.wiring.wiring import Edge, Edges, Reader, Stream, Verified, Wiring, Writer

__all__ = ["Edge", "Edges", "HeadWeights", "Reader", "Rows", "Stream", "Verified", "Wiring", "Writer", "models", "wire"]
