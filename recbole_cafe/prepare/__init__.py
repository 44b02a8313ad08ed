"""Raw files -> atomic files: one reader per source, one pipeline, one writer.

`raw` goes through a file line by line and keeps what can be used as Parquet; the readers in `sources` know what its
lines mean; `pipeline` filters, chooses intents and counts, with the same Ibis expressions on either engine of `engine`;
`recbole_cafe.files.atomic_writer` writes. `check` says whether a data set suits CaFe, `simulate` makes one up.
"""
