"""What a configuration takes and whether it fits, counted before anything is loaded.

``outline`` is what a plan depends on, ``demand`` what each rank needs wherever it runs, ``devices``
where that may be; ``fit`` puts them together. ``measure`` alone imports torch.
"""
