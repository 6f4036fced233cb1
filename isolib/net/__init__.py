"""Networks of network namespaces: links, addresses, names, what passes and how badly."""
