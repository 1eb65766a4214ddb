#!/bin/sh
echo "workers: $(nproc)" >&2
