"""Devices, hosts, storage, locks, errors: what every room stands on."""
