#!/bin/sh
# Greets each name in a file.
while read -r name; do echo "$GREETING, $name"; done < "$1"
