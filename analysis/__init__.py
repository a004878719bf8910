"""Figures and tables, one module each, drawn from saved files: python -m analysis.NAME."""
