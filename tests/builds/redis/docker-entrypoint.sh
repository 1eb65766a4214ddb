#!/bin/sh
set -e
# options alone are for the server
if [ "${1#-}" != "$1" ]; then
	set -- redis-server "$@"
fi
umask 0077
exec "$@"
