"""The networks: Conformer encoder, CR-CTC head, adaptor, speech-LLM.  No data code is imported here."""
