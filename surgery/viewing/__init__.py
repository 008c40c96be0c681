"""Looking at models and trainings."""
