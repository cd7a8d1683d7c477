"""What is shown of a run: pages, galleries of figures."""
