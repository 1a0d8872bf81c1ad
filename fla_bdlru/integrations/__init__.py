"""Libraries, other than flash-linear-attention, whose models take the layers; nothing here imports them."""
