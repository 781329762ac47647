"""What learns which units stay: gates, masks, the constraint, selection and surgery."""
