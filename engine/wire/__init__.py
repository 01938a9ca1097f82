"""What travels: the protocol, Ogg/Opus streams, the `/api` server and a client."""
