from fla_bdlru.mixers.hook import swap_mixers
from fla_bdlru.mixers.registry import available_mixers, build_mixer, register_mixer

__all__ = ["available_mixers", "build_mixer", "register_mixer", "swap_mixers"]
