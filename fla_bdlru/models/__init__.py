from fla_bdlru.models.bdlru import BDLRUConfig, BDLRUForCausalLM, BDLRUModel
from fla_bdlru.models.hlru import HLRUConfig, HLRUForCausalLM, HLRUModel

__all__ = ["BDLRUConfig", "BDLRUForCausalLM", "BDLRUModel", "HLRUConfig", "HLRUForCausalLM", "HLRUModel"]
