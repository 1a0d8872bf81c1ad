from fla_bdlru.layers.bdlru import BDLRU
from fla_bdlru.layers.bidirectional import Bidirectional
from fla_bdlru.layers.hlru import HLRU
from fla_bdlru.layers.lstm import LSTM

__all__ = ["BDLRU", "HLRU", "LSTM", "Bidirectional"]
