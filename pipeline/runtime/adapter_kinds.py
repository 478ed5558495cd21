"""The name of the adapters that PEFT lacks, for the model room and for publishing, which loads no torch."""

NARLM_PEFT_TYPE = "NARLM"  # the ``peft_type`` in their ``adapter_config.json``, which PEFT itself does not read
