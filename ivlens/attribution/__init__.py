"""Beyond the heads' last token: other sites and positions, paths between heads, logits part by part, other rankings."""
