from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.http.addresses import why_refused

# the guard, address by address, without a connection

PUBLIC = (
    "8.8.8.8 1.1.1.1 99.84.0.1 172.15.255.255 172.32.0.1 100.63.255.255 100.128.0.1 192.0.1.1 198.20.0.1 "
    "223.255.255.255 2606:4700::1 2001:4860:4860::8888 2a00:1450::1 ::ffff:8.8.8.8 64:ff9b::8.8.8.8 "
    "2600:1f00::200:5efe:808:808"
)
PRIVATE = (
    "0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.100.100.200 127.0.0.1 127.255.255.254 169.254.169.254 "
    "172.16.0.1 172.31.255.255 192.0.0.192 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1 "
    "224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255 168.63.129.16 "
    ":: ::1 ::127.0.0.1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:0:127.0.0.1 "
    "64:ff9b::127.0.0.1 64:ff9b::a00:1 64:ff9b::169.254.169.254 64:ff9b:1::1 64:ff9b:1::8.8.8.8 100::1 "
    "2001::1 2001:db8::1 2001:10::1 2001:20::1 2002:7f00:1::1 2002:808:808::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 "
    "2600:1f00::5efe:127.0.0.1 2600:1f00::200:5efe:10.0.0.1 3fff::1 5f00::1 4000::1 "
    "fc00::1 fd00:ec2::254 fdff::1 fe80::1 fe80::1%eth0 fec0::1 ff02::1 ff0e::1"
)


@pytest.mark.parametrize("address", PUBLIC.split())
def test_public_addresses_pass(address: str) -> None:
    assert why_refused(address) is None


@pytest.mark.parametrize("address", [*PRIVATE.split(), "", "localhost", "2130706433", "0177.0.0.1", "127.1"])
def test_every_other_address_is_refused(address: str) -> None:
    reason = why_refused(address)
    assert reason is not None
    assert address.partition("%")[0] in reason


@given(st.ip_addresses())
@settings(max_examples=500, deadline=None)
def test_guard_is_never_more_lenient_than_python(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    if why_refused(str(ip)) is None:
        inner = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped else ip
        assert inner.is_global
        assert not inner.is_multicast


@given(st.ip_addresses(v=4), st.sampled_from(["::ffff:0:0", "64:ff9b::"]))
@settings(max_examples=300, deadline=None)
def test_addresses_inside_others_are_judged_as_themselves(ip: ipaddress.IPv4Address, prefix: str) -> None:
    outer = ipaddress.IPv6Address(int(ipaddress.IPv6Address(prefix)) | int(ip))
    assert (why_refused(str(outer)) is None) == (why_refused(str(ip)) is None)
