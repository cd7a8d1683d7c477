"""What was measured of one model, or of a model before and after fine-tuning."""
