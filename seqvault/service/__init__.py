"""SeqVault over gRPC: server and client with the interface of the store."""
