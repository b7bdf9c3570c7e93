"""Vision encoder, visual embedding and backbone put together."""
