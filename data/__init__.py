"""TFDS datasets of real and manipulated images, one folder each; `wsdl_data.build` prepares them.

Every subset has the features `image`, `label` (0 real, 1 fake) and `key`, and where the manipulated
part is known also `mask` (0 untouched, above 0 manipulated).
"""
