from fla_bdlru.models.modeling import BDLRUConfig, BDLRUForCausalLM, BDLRUModel, HLRUConfig, HLRUForCausalLM, HLRUModel

__all__ = ["BDLRUConfig", "BDLRUForCausalLM", "BDLRUModel", "HLRUConfig", "HLRUForCausalLM", "HLRUModel"]
