"""Many replicas of one model behind one address, on engines that others keep: Ray Serve and NVIDIA Dynamo.

Nothing here serves by itself. Each replica is the application of `sala_export.serving`, whole.
"""
