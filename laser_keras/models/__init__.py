"""Click models: a tokenizer, an encoder, RankMixer and a head."""
