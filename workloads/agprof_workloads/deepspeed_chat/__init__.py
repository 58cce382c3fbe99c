"""DeepSpeed-Chat: supervised fine-tuning, a reward model, and PPO against it, on OPT models.

Read in this order: ``models`` and ``lora`` (what is computed), ``losses``, ``text`` and ``data`` (what it is fed),
``sft``, ``reward`` and ``rlhf`` (the three loops), ``chain`` (the three in a row), ``metrics`` (the speeds that the
original prints, and what they should be). ``options`` and ``job`` hold what the three share.
"""
