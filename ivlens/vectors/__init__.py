"""What instruction vectors are, how alike they are, and what they look like in other tools."""
