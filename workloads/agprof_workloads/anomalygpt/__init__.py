"""AnomalyGPT: a frozen ImageBind and a frozen LLaMA, joined by a small decoder and a prompt learner that are trained.

Read in this order: ``sizes`` (how big), ``imagebind`` and ``model`` (what is computed), ``losses``, ``prompts``,
``anomalies`` and ``data`` (what it is fed), ``train`` (the loop).
"""
