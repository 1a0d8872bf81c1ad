"""Libraries, other than flash-linear-attention, that take the layers or the models; importing this imports none of them."""
