#!/bin/sh
# Bring Debian's chromium, a font and nginx for the tests, where apt may; else say what is missing.
missing=""
for tool in chromium nginx espeak-ng; do
  command -v "$tool" >/dev/null 2>&1 || [ -x "/usr/sbin/$tool" ] || missing="$missing $tool"
done
fc-list 2>/dev/null | grep -qi dejavu || missing="$missing fonts-dejavu-core"
# Chromium without its windows does the same for less work. Where it is not, the whole one serves.
quicker=chromium-headless-shell
command -v $quicker >/dev/null 2>&1 && quicker=""
[ -z "$missing$quicker" ] && exit 0
packages=$(echo "$missing" | sed 's/\bnginx\b/nginx-light/')
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq >/dev/null 2>&1
  [ -z "$quicker" ] || apt-get install -y -qq $quicker >/dev/null 2>&1
  [ -z "$missing" ] && exit 0
  # shellcheck disable=SC2086 # a list of words
  apt-get install -y -qq $packages >/dev/null 2>&1 && exit 0
fi
[ -z "$missing" ] && exit 0
echo "not installed:$missing; the tests that need them are skipped (as root: apt-get install$packages)"
exit 0
