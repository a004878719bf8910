"""The score S of Eq. 7 by a model: an endpoint (http.py) or a local causal LM (local.py)."""
