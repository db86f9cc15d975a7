#!/usr/bin/env bash
# Runs the tests of what has to be right on Windows as Windows programs, under Wine.
#
#   conformance/wine.sh [PACKAGE...]     default: keys, keys/spec, cas, layers, registry, executor/hcs, cmd/obx
#
# Wine is version 10, of Debian 13, in a directory of its own ($OBX_WINE, default ~/.cache/obx-test/wine), since older ones
# lack what Go programs need. It is made by mmdebstrap when it is missing. Every failure, also that of making it, is one of
# this script: nothing is skipped. Needs root.
set -euo pipefail
cd "$(dirname "$0")/.."

wine=${OBX_WINE:-${XDG_CACHE_HOME:-$HOME/.cache}/obx-test/wine}
packages=("$@")
if [ ${#packages[@]} = 0 ]; then
	packages=(keys keys/spec cas layers registry executor/hcs cmd/obx)
fi

if [ "$(id -u)" != 0 ]; then
	echo "wine.sh: making a root file system for Wine needs root" >&2
	exit 1
fi
if [ ! -x "$wine/usr/lib/wine/wine64" ]; then
	echo "installing Wine 10 in $wine"
	rm -rf "$wine" "$wine.new"
	mkdir -p "$(dirname "$wine")"
	if ! mmdebstrap --quiet --variant=apt --include=wine64 trixie "$wine.new"; then
		rm -rf "$wine.new"
		echo "wine.sh: mmdebstrap cannot make a Debian 13 with wine64; its reasons are above" >&2
		exit 1
	fi
	mv "$wine.new" "$wine"
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export GOOS=windows GOARCH=amd64 CGO_ENABLED=0
go build -o "$work/obx.exe" ./cmd/obx
for p in "${packages[@]}"; do
	go test -c -o "$work/${p//\//-}.test.exe" "./$p"
done

# inside CURRENT PROGRAM ARGUMENT...: runs a Windows program in Wine's root file system. All that it starts ends with it.
inside() {
	unshare --mount --pid --fork --kill-child sh -c '
		set -e
		root=$1 src=$2 work=$3 dir=$4
		shift 4
		mount -t proc proc "$root/proc"
		mount -t tmpfs tmpfs "$root/tmp"
		mount -t tmpfs tmpfs "$root/root"
		mkdir -p "$root/tmp/src" "$root/tmp/work"
		mount --bind "$src" "$root/tmp/src"
		mount -o remount,bind,ro "$root/tmp/src"
		mount --bind "$work" "$root/tmp/work"
		exec chroot "$root" /usr/bin/env -i HOME=/root PATH=/usr/bin:/bin WINEDEBUG=-all WINEPREFIX=/root/prefix \
			OBX_EXE="Z:\\tmp\\work\\obx.exe" sh -c "cd \"\$1\" && shift && exec /usr/lib/wine/wine64 \"\$@\"" sh "/tmp/src/$dir" "$@"
	' sh "$wine" "$PWD" "$work" "$@"
}

total=0 failed=()
for p in "${packages[@]}"; do
	out="$work/out"
	status=0
	inside "$p" "Z:\\tmp\\work\\${p//\//-}.test.exe" -test.v -test.timeout ${OBX_WINE_TIMEOUT:-5m} >"$out" 2>&1 </dev/null || status=$?
	passed=$(grep -c -- '--- PASS' "$out" || true)
	skipped=$(grep -c -- '--- SKIP' "$out" || true)
	total=$((total + passed))
	echo "$p: $passed passed, $skipped skipped"
	if [ $status != 0 ] || [ "$passed" = 0 ]; then
		failed+=("$p")
		grep -v -E -- '^ *(=== |--- (PASS|SKIP))' "$out" | sed '/^goroutine /,$d' | tail -n 60 || true
		echo "$p: exit status $status" >&2
	fi
done
echo "Wine: $total tests passed"
if [ ${#failed[@]} != 0 ]; then
	echo "Wine: failed: ${failed[*]}" >&2
	exit 1
fi
