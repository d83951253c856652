#!/bin/sh
# A node in awk: what stands behind "seen": in the line, and one more.
exec mawk -W interactive '{
    seen = 0
    if (match($0, /"seen":[0-9]+/)) seen = substr($0, RSTART + 7, RLENGTH - 7)
    print "{\"state\":{\"seen\":" seen + 1 "}}"
    fflush()
}'
