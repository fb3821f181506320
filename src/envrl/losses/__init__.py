"""Advantages, loss terms and schedules: pure functions of tensors, without state and without logging.

Every token loss takes flat tensors over target positions and an explicit denominator, the number of
target tokens in the whole update batch, so that the terms of micro-batches add up to the term of the
one large batch. Functions are imported from their own files, e.g. ``envrl.losses.policy``.
"""
