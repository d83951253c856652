#!/bin/sh
while read -r line; do
    case $line in
    *'"event":"good"'*) echo '{"emit":"out","data":1}' ;;
    *) while :; do sleep 1000 & done ;;
    esac
done
