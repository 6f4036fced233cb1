"""Network virtualisation: links, bridges, addresses, routes, and networks made of them.

What is made belongs to a network namespace and dies with it; what has to lie in a namespace that does not die with its handle
is entrusted to the reaper.  No tool is run: the kernel is spoken to by netlink, through sockets that belong to the namespaces.
"""
