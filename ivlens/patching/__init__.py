"""What every head does: activations, the exact sweep, interventions, effects."""
