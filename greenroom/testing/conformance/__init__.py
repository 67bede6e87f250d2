"""The conformance suite for providers, to run over one's own as well as over Greenroom's.

from greenroom.testing.conformance import ProviderSuite, Rig

class MyRig(Rig):
    kind = "my_package.my_module:MyProvider"
    ...

class TestMyProvider(ProviderSuite):
    rig_class = MyRig
"""

from .rig import API_KEY, NATIVE, Abilities, Rig
from .stage import Stage, check_run, nothing_left, types_of
from .suite import ProviderSuite

__all__ = ["API_KEY", "NATIVE", "Abilities", "ProviderSuite", "Rig", "Stage", "check_run", "nothing_left", "types_of"]
