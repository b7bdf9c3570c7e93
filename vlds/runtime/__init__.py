"""What every room uses and none owns."""
