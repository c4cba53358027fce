"""What masks are worth and what they measure."""
