"""Virtual networks: links, bridges, addresses, routes, names, firewalls and bad weather, as objects."""
