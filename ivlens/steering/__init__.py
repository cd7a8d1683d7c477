"""What a vector does when it is added: where and how much of it, beside which controls."""
