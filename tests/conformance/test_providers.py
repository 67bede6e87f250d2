"""The conformance suite over every kind of provider: real clients against loopback stand-ins."""

from greenroom.adapters.providers.registry import KINDS
from greenroom.testing.conformance import ProviderSuite

from .heavy_rigs import HEAVY_RIGS
from .provider_rigs import RIGS

for _rig in (*RIGS, *HEAVY_RIGS):
    _name = "Test" + "".join(part.capitalize() for part in _rig.name.split("-"))
    globals()[_name] = type(_name, (ProviderSuite,), {"rig_class": _rig, "__module__": __name__})


def test_every_kind_of_provider_is_in_the_suite() -> None:
    assert set(KINDS) - {"replay"} == {rig.kind for rig in RIGS}
