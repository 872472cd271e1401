"""`lorakit init`: a commented recipe for a data file.

`columns` looks at the file, `detect` says what its rows are, `lengths` how long, `family` what the base is, `settings`
chooses and says why, `layout` writes it down, `draft` does it all in this order.
"""
