"""From an address to its files, each at one version: local directories, http(s) and the Hub."""

from sqid_lib.files import File
from sqid_lib.sources.address import Address, parse_address
from sqid_lib.sources.find import ESCI_URL, SQID_URL, find, find_file, fingerprint, listing
from sqid_lib.sources.read import download, offline, open_ranges, snapshot

__all__ = [
    "ESCI_URL",
    "SQID_URL",
    "Address",
    "File",
    "download",
    "find",
    "find_file",
    "fingerprint",
    "listing",
    "offline",
    "open_ranges",
    "parse_address",
    "snapshot",
]
