"""Netlink: how network devices, addresses, routes and firewalls are asked for and asked about (netlink(7))."""
