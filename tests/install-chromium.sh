#!/bin/sh
# The report is tested in a real browser: Debian's, since browser downloads are not always reachable.
set -eu
[ -x /usr/bin/chromium ] && exit 0
as_root=""
[ "$(id -u)" = 0 ] || as_root="sudo"
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update -qq
$as_root apt-get install -y -qq chromium >/dev/null
