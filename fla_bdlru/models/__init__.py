from fla_bdlru.models.heads import (
    BDLRUForMaskedLM,
    BDLRUForSequenceClassification,
    BDLRUForTokenClassification,
    HLRUForMaskedLM,
    HLRUForSequenceClassification,
    HLRUForTokenClassification,
)
from fla_bdlru.models.modeling import BDLRUConfig, BDLRUForCausalLM, BDLRUModel, HLRUConfig, HLRUForCausalLM, HLRUModel

__all__ = [
    "BDLRUConfig", "BDLRUForCausalLM", "BDLRUForMaskedLM", "BDLRUForSequenceClassification", "BDLRUForTokenClassification",
    "BDLRUModel", "HLRUConfig", "HLRUForCausalLM", "HLRUForMaskedLM", "HLRUForSequenceClassification",
    "HLRUForTokenClassification", "HLRUModel",
]  # fmt: skip
