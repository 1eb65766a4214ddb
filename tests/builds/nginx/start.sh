#!/bin/sh
set -e
for hook in /docker-entrypoint.d/*.sh; do
    [ -x "$hook" ] && "$hook"
done
exec "$@"
