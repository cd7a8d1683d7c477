"""What instruction vectors are, do when added, and look like in other tools."""
