"""Virtual networks: links, bridges, addresses, address translation and what passes between them."""
