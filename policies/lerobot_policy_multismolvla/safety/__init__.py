"""What a policy does on a robot when it must not or cannot act as it planned, and what it says of it."""
