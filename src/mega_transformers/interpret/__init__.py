"""What models have learnt, and what their answers rest on."""
