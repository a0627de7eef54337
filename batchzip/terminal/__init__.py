"""What people see: streams, the console, tables that fit their width, and figures as text.

streams.py  standard streams in any state, and lines on stderr
console.py  the only maker of a rich Console: tables in colour, progress bars, JSON
styles.py   colours, by what they mean
table.py    tables that leave columns out where there is no room for them
text.py     the width of output, paragraphs, sizes in bytes and durations as text

Nothing here knows what it shows. Every other package may use this one.
"""
