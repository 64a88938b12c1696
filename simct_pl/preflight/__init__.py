"""Preflight: what a pair of models and a prompt file promise, looked at before any GPU time is spent."""
