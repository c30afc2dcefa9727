"""What tests share: small models, servers with the real protocols, processes that are killed."""
