#!/bin/sh
envsubst < /dev/null
