"""Which IP addresses an untrusted URL may lead to: public ones, and none on the user's own network."""

from __future__ import annotations

import ipaddress

# IANA special-purpose address registries (RFC 6890 and updates); Python's own tables differ between its versions
_SPECIAL_V4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
            *("192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24"),
            *("192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
            "224.0.0.0/3",  # multicast and reserved
            "168.63.129.16/32",  # platform service of a cloud (Azure), in public space
        ),
    )
)
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")  # the only space assigned to global unicast
_SPECIAL_V6 = tuple(  # 2001::/32 is Teredo, 2002::/16 6to4
    map(ipaddress.IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20"))
)
_V4_IN_V6 = (ipaddress.IPv6Network("::ffff:0:0/96"), ipaddress.IPv6Network("64:ff9b::/96"))  # mapped; NAT64 (RFC 6052)
_ISATAP = (0x00005EFE, 0x02005EFE)  # RFC 5214 interface identifiers, an IPv4 address follows


def why_refused(address: str) -> str | None:
    """Why no connection may go to an IP address: None for a global unicast address, else one line.

    IPv4 addresses inside IPv6 ones (mapped, NAT64, ISATAP) are judged as IPv4 addresses; other forms that contain one
    (6to4, Teredo, compatible, local NAT64) are all refused.
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return f"{address!r} is not an IP address"
    if isinstance(ip, ipaddress.IPv6Address):
        value = int(ip)
        inner = ipaddress.IPv4Address(value & 0xFFFFFFFF)
        if any(ip in network for network in _V4_IN_V6):
            ip = inner
        elif ip not in _GLOBAL_V6 or any(ip in network for network in _SPECIAL_V6):
            return f"{address} is not a public address"
        elif (value >> 32) & 0xFFFFFFFF in _ISATAP and why_refused(str(inner)):
            return f"{address} contains {inner}, which is not a public address"
        else:
            return None
    if any(ip in network for network in _SPECIAL_V4):
        return f"{address} is not a public address"
    return None
